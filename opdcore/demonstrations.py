"""Demonstrations: the responses that prompts come with, as the student would have written them.

Encoded once, before anything is sampled, so that a prompt without one is known then. It knows no
model's weights and no step of training.
"""

from __future__ import annotations

from collections.abc import Iterable

from opdcore.contract.errors import BadInput
from opdcore.pool import Pool
from opdcore.rendering import Renderer

# A demonstration's ids, its end token included, by row of the train set.
Demonstrations = dict[int, tuple[int, ...]]


def encode(rows: Iterable[int], pool: Pool, renderer: Renderer, *, field: str) -> Demonstrations:
    """Return the rows' demonstrations; `field` names the knob that asks for them.

    Raises BadInput where a row has none.
    """
    wanted = sorted(rows)
    missing = [row for row in wanted if not (pool[row].response or "").strip()]
    if missing:
        first = pool.place(missing[0])
        raise BadInput(
            "recipe.no_demonstrations",
            f"{len(missing)} of {len(wanted)} prompts have no response to learn from, the first of "
            f"them in row {first.row + 1} of {first.source}.",
            remedy="Give every prompt of the set a `response`, or change the knob.",
            field=field,
        )
    texts = [pool[row].response or "" for row in wanted]
    return dict(zip(wanted, renderer.responses(texts), strict=True))
