"""`python -m benchmarks [NAME[.PART] ...]`: measures, writes docs/results/NAME.json; everything if none is named."""

from __future__ import annotations

import argparse

from benchmarks import main_job, records

BENCHMARKS = {"main-job": main_job}


def main() -> None:
    """Measures the named parts, one after another."""
    every = [f"{name}.{part}" for name, module in BENCHMARKS.items() for part in module.PARTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="NAME.PART", help=", ".join(every))
    asked = parser.parse_args().parts or every
    unknown = sorted(set(asked) - set(every))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(every)}")
    for part in asked:
        name, _, key = part.partition(".")
        measure(name, key)


def measure(name: str, part: str) -> None:
    """Measures one part and writes it."""
    module = BENCHMARKS[name]
    path = records.record(name, part, module.PARTS[part](), summarise=module.summarise)
    print(f"{name}.{part}: {path.relative_to(records.ROOT)}")


if __name__ == "__main__":
    main()
