"""`python -m benchmarks.calibration --shard I/N`: probes and runs what of the study is not kept yet.

What it keeps is read by `python -m benchmarks calibration`, so the study can be made by several
processes.
"""

from __future__ import annotations

import argparse

from benchmarks.calibration.runs import is_kept, measured, ran
from benchmarks.calibration.study import described
from benchmarks.calibration.triples import FITTED_ON, SCORED_ON, attempts, more_healthy, plan

TOLD = ("name", "severity", "outcome", "verdict", "go", "health", "cpu_seconds")


def main() -> None:
    """Makes this process' part, and says a line for each triple."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--shard", default="0/1", metavar="I/N", help="this process' part")
    index, _, number = parser.parse_args().shard.partition("/")
    both = zip(plan(SCORED_ON), plan(FITTED_ON), strict=True)
    probed = [triple for pair in both for triple in pair] + [*attempts(SCORED_ON)]
    for triple in probed[int(index) :: int(number)]:
        if not is_kept(triple):
            row = described(triple, measured(triple))
            print("  ".join(f"{key} {row[key]}" for key in TOLD), flush=True)
    for triple in more_healthy(SCORED_ON)[int(index) :: int(number)]:
        if not is_kept(triple, probed=False):
            print(f"name {triple.name}  outcome {ran(triple)['outcome']['code']}", flush=True)


if __name__ == "__main__":
    main()
