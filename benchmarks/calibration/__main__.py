"""`python -m benchmarks.calibration --shard I/N`: probes and runs the triples of one shard, both families in turn.

What it keeps is read by `python -m benchmarks calibration`, so the study can be made by several processes.
"""

from __future__ import annotations

import argparse

from benchmarks.calibration.runs import is_kept, measured
from benchmarks.calibration.study import described
from benchmarks.calibration.triples import FITTED_ON, SCORED_ON, plan

TOLD = ("name", "severity", "outcome", "verdict", "go", "health", "cpu_seconds")


def main() -> None:
    """Makes what is not kept yet, and says a line for each triple."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="this process' part")
    index, _, number = parser.parse_args().shard.partition("/")
    both = zip(plan(FITTED_ON), plan(SCORED_ON), strict=True)
    triples = [triple for pair in both for triple in pair]
    for triple in triples[int(index) :: int(number)]:
        if not is_kept(triple):
            row = described(triple, measured(triple))
            print("  ".join(f"{key} {row[key]}" for key in TOLD), flush=True)


if __name__ == "__main__":
    main()
