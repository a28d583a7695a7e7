"""`python -m benchmarks.rescue [FAMILY] [CAUSE ...] [others]`: runs what of the study is not kept yet.

Start it as often as there are cores: each process takes the next case that no other one has. What they
keep is read by `python -m benchmarks rescue`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from benchmarks.claims import claimed
from benchmarks.rescue import knowledge, selections
from benchmarks.rescue.arms import KEPT, file_of, measured
from benchmarks.rescue.cases import CAUSES, DRAWN, FAILING, SCORED_ON, SEEDS, TRIED_ON, Case, drawn
from benchmarks.rescue.study import described
from opdcore.contract.select_prompts import Strategy

TOLD = ("name", "severity", "parent", "before", "teacher", "parent_after")
RESCUED = (
    "verdict",
    "called_at",
    "start",
    "child_after",
    "fine_tuned_after",
    "distilled_after",
    "proof",
    "recovery",
)


def main() -> None:
    """Goes through the causes in turn, so that a study cut short has some of each."""
    asked = set(sys.argv[1:])
    family = TRIED_ON if TRIED_ON in asked else SCORED_ON
    causes = [cause for cause in CAUSES if cause in asked or not asked - {family}]
    cases = {cause: list(drawn(cause, family)) for cause in causes}
    for number in range(DRAWN):
        for cause in causes:
            if not _enough(cases[cause]):
                _make(cases[cause][number])
    if not asked or "others" in asked:
        others()


def others() -> None:
    """Teachers with nothing new, and strategies of selection, seed by seed."""
    for seed in SEEDS:
        with claimed(KEPT / "claims", f"others-{seed}") as mine:
            if not mine:
                continue
            _keep(knowledge.file_of(seed), partial(knowledge.measured, seed))
            for strategy in get_args(Strategy):
                arm = partial(selections.measured, seed, strategy)
                _keep(selections.file_of(seed, strategy), arm)


def _keep(file: Path, measure: Callable[[], object]) -> None:
    """Measures what no file holds yet."""
    if not file.exists():
        measure()
        print(file.relative_to(KEPT), flush=True)


def _make(case: Case) -> None:
    with claimed(KEPT / "claims", case.name) as mine:
        if mine and not file_of(case).exists():
            row = described(case, measured(case))
            print("  ".join(f"{key} {row.get(key)}" for key in (*TOLD, *RESCUED)), flush=True)


def _enough(cases: Sequence[Case]) -> bool:
    """Whether so many of a cause's cases that were run have failed."""
    kept = [measured(case) for case in cases if file_of(case).exists()]
    return sum("plan" in told for told in kept) >= FAILING


if __name__ == "__main__":
    main()
