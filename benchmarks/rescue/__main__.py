"""`python -m benchmarks.rescue [CAUSE ...]`: runs what of the study is not kept yet.

Start it as often as there are cores: each process takes the next case that no other one has. What they
keep is read by `python -m benchmarks rescue`.
"""

from __future__ import annotations

import sys

from benchmarks.claims import claimed
from benchmarks.rescue.arms import KEPT, file_of, measured
from benchmarks.rescue.cases import CAUSES, DRAWN, FAILING, Case, Cause, drawn
from benchmarks.rescue.study import described

TOLD = ("name", "severity", "parent", "before", "teacher", "parent_after")
RESCUED = ("verdict", "called_at", "start", "child_after", "fine_tuned_after", "proof", "recovery")


def main() -> None:
    """Goes through the causes in turn, so that a study cut short has some of each."""
    causes = [cause for cause in CAUSES if cause in sys.argv[1:] or len(sys.argv) == 1]
    cases = {cause: list(drawn(cause)) for cause in causes}
    for number in range(DRAWN):
        for cause in causes:
            if not _enough(cause):
                _make(cases[cause][number])


def _make(case: Case) -> None:
    with claimed(KEPT / "claims", case.name) as mine:
        if mine and not file_of(case).exists():
            row = described(case, measured(case))
            print("  ".join(f"{key} {row.get(key)}" for key in (*TOLD, *RESCUED)), flush=True)


def _enough(cause: Cause) -> bool:
    """Whether so many of a cause's cases that were run have failed."""
    kept = [measured(case) for case in drawn(cause) if file_of(case).exists()]
    return sum("plan" in told for told in kept) >= FAILING


if __name__ == "__main__":
    main()
