"""`python -m benchmarks.calibration`: probes and runs what of the study is not kept yet.

Start it as often as there are cores: each process takes the next triple that no other one has. What
they keep is read by `python -m benchmarks calibration`.
"""

from __future__ import annotations

from benchmarks.calibration.runs import KEPT, is_kept, measured, ran
from benchmarks.calibration.study import described
from benchmarks.calibration.triples import (
    FITTED_ON,
    SCORED_ON,
    attempts,
    more_healthy,
    plan,
)
from benchmarks.claims import claimed

TOLD = ("name", "severity", "outcome", "verdict", "go", "health", "cpu_seconds")


def main() -> None:
    """Makes what is left, and says a line for each triple."""
    for triple in (*plan(FITTED_ON), *plan(SCORED_ON), *attempts(SCORED_ON)):
        with claimed(KEPT / "claims", triple.name) as mine:
            if mine and not is_kept(triple):
                row = described(triple, measured(triple))
                print("  ".join(f"{key} {row[key]}" for key in TOLD), flush=True)
    for triple in more_healthy(SCORED_ON):
        with claimed(KEPT / "claims", triple.name) as mine:
            if mine and not is_kept(triple, probed=False):
                print(f"name {triple.name}  outcome {ran(triple)['outcome']['code']}", flush=True)


if __name__ == "__main__":
    main()
