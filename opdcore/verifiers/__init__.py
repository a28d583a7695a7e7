"""Verifiers: each grades responses against reference answers. None stands for a run without one.

Importing this package loads neither torch nor math-verify. It knows no stage and no recipe.

    with verifiers.open("numeric") as verifier:
        grades = verifier.grade([Attempt(response, answer)])
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opdcore.contract.errors import BadInput
from opdcore.verifiers.choice import Choice
from opdcore.verifiers.exact import Exact
from opdcore.verifiers.grading import Attempt, Grade, Verifier
from opdcore.verifiers.laboratory import Laboratory
from opdcore.verifiers.math import Math
from opdcore.verifiers.numeric import Numeric

__all__ = ["VERIFIERS", "Attempt", "Grade", "Verifier", "open"]

VERIFIERS: dict[str, Callable[[], AbstractContextManager[Verifier | None]]] = {
    "none": lambda: nullcontext(None),
    "exact": lambda: nullcontext(Exact()),
    "numeric": lambda: nullcontext(Numeric()),
    "choice": lambda: nullcontext(Choice()),
    "math": Math,
    "laboratory": lambda: nullcontext(Laboratory()),
}


@contextmanager
def open(name: str) -> Iterator[Verifier | None]:  # noqa: A001 - `verifiers.open` reads as it is.
    """Open a verifier by its name in the recipe, and end its processes afterwards.

    Raises BadInput for an unknown name, and for `math` where math-verify is not installed.
    """
    if name not in VERIFIERS:
        raise BadInput(
            "verifier.unknown",
            f"There is no verifier {name!r}.",
            remedy=f"Choose one of {', '.join(VERIFIERS)}.",
            field="verifier",
        )
    with VERIFIERS[name]() as verifier:
        yield verifier
