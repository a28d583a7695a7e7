"""`python -m benchmarks [NAME[.PART] ...]`: measures, writes docs/results/NAME.json; everything if none is named."""

from __future__ import annotations

import argparse

from benchmarks import (
    calibration,
    diagnosis,
    engine,
    gpu,
    long,
    main_job,
    matrix,
    needs,
    objectives,
    records,
    rescue,
    scores,
    teachers,
)

BENCHMARKS = {
    "main-job": main_job,
    "bench": engine,
    "bench-gpu": gpu,
    "objectives": objectives,
    "diagnosis": diagnosis,
    "calibration": calibration,
    "rescue": rescue,
    "teachers": teachers,
    "engine-matrix": matrix,
    "teacher-scores": scores,
    "long-responses": long,
    "needs": needs,
}


def main() -> None:
    """Measures the named parts, one after another."""
    every = [f"{name}.{part}" for name, module in BENCHMARKS.items() for part in module.PARTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="NAME.PART", help=", ".join(every))
    parser.add_argument(
        "--quick", action="store_true", help="bench only: a few steps, printed and not recorded"
    )
    arguments = parser.parse_args()
    named = {
        name: [part for part in every if part.partition(".")[0] == name] for name in BENCHMARKS
    }
    asked = [part for one in arguments.parts for part in named.get(one, [one])] or every
    unknown = sorted(set(asked) - set(every))
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)}; there are {', '.join(every)}")
    if arguments.quick:
        look([part.removeprefix("bench.") for part in asked if part.startswith("bench.")])
        return
    for part in asked:
        name, _, key = part.partition(".")
        measure(name, key)


def measure(name: str, part: str) -> None:
    """Measures one part and writes it."""
    module = BENCHMARKS[name]
    rows = module.PARTS[part]()
    path = records.record(name, part, rows, summarise=module.summarise)
    print(f"{name}.{part}: {path.relative_to(records.ROOT)}")
    print(records.table(module.summarise({part: rows})))


def look(parts: list[str]) -> None:
    """Measures parts of the engine's benchmark by a few steps, to see whether it works and what to expect."""
    for part in parts:
        print(records.table(engine.summarise({part: engine.QUICK_PARTS[part]()})))


if __name__ == "__main__":
    main()
