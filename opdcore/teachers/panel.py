"""Teachers who score the same prompts, as one distribution at every position.

What they say together is the distribution nearest to all of them by the divergence that is trained on:
for the reverse KL their weighted geometric mean, since sum_i w_i KL(p || q_i) = KL(p || q) + const with
log q = sum_i w_i log q_i + const; for the forward KL their mixture q = sum_i w_i q_i, likewise. The
Jensen-Shannon divergence has no such mean and takes the mixture. A panel of one is that teacher, bit
for bit. It knows batches and models, no loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from opdcore.batches import Batch, response_hidden
from opdcore.contract.objective import Divergence
from opdcore.contract.training import Precision
from opdcore.models import LoadedModel
from opdcore.serving.model import ServedModel
from opdcore.sides import Reference, Side
from opdcore.teachers.recorded import AnyModel, RecordedModel, Wanted
from opdcore.top_tokens import most_probable

Mean = Literal["geometric", "mixture"]


@dataclass(frozen=True)
class Scoring:
    """How a panel is asked: at which temperature, put together by which mean, and how many tokens told.

    `k` matters alone to a teacher that tells its top k: behind a server, or with a record.
    """

    vocabulary: int
    temperature: float = 1.0
    divergence: Divergence = "reverse"
    precision: Precision = "float32"
    k: int = 1

    @property
    def mean(self) -> Mean:
        return "geometric" if self.divergence == "reverse" else "mixture"

    @property
    def wanted(self) -> Wanted:
        """What a record knows a told text by."""
        return Wanted(self.k, self.vocabulary, self.precision)


@dataclass(frozen=True)
class Panel:
    """`shares` add up to 1; in a batch the members' sides follow the student's.

    `numbers` are the members' among the run's teachers.
    """

    numbers: tuple[int, ...]
    models: tuple[AnyModel, ...]
    shares: tuple[float, ...]

    def side(self, batch: Batch, scoring: Scoring, *, student: Side) -> Reference:
        """What the members say at the batch's positions, as one model would.

        `student` is read where a server tells the student's most probable tokens too.
        """
        first, *others = self.models
        if isinstance(first, RecordedModel) and not others:
            return first.side(batch, side=1, wanted=scoring.wanted)
        if isinstance(first, ServedModel) and not others:
            theirs = None
            if first.student_top_k:
                theirs = most_probable(student, k=scoring.k, vocabulary=scoring.vocabulary)
            return first.side(batch, side=1, k=scoring.k, asked=theirs)
        loaded = [model for model in self.models if isinstance(model, LoadedModel)]
        assert len(loaded) == len(self.models), "Who tells its top k scores its prompts alone."
        hidden = [
            response_hidden(model, batch, side=place, precision=scoring.precision)
            for place, model in enumerate(loaded, start=1)
        ]
        if len(hidden) == 1:
            return Side(hidden[0], loaded[0].project)
        return Side(
            torch.cat(hidden, dim=-1),
            self._projection(loaded, [h.shape[-1] for h in hidden], scoring),
        )

    def refuse_unkept(self, batch: Batch, scoring: Scoring) -> None:
        """Raises NotKept where a replayed member cannot score the batch."""
        for place, model in enumerate(self.models, start=1):
            if isinstance(model, RecordedModel):
                model.refuse_unkept(batch, side=place, wanted=scoring.wanted)

    def _projection(
        self, models: Sequence[LoadedModel], widths: Sequence[int], scoring: Scoring
    ) -> Callable[[Tensor], Tensor]:
        def project(hidden: Tensor) -> Tensor:
            parts = zip(models, hidden.split(list(widths), dim=-1), strict=True)
            tables = [
                model.project(part)[..., : scoring.vocabulary].float() for model, part in parts
            ]
            return _mean(tables, self.shares, scoring)

        return project


def _mean(tables: Sequence[Tensor], shares: Sequence[float], scoring: Scoring) -> Tensor:
    """Logits of the mean, to be divided by the temperature as any other's are."""
    if scoring.mean == "geometric":
        # A row's constant does not matter, so logits serve as well as logprobs.
        total = tables[0].mul(shares[0])
        for table, share in zip(tables[1:], shares[1:], strict=True):
            total.add_(table, alpha=share)
        return total
    parts = [
        (table / scoring.temperature).log_softmax(-1) + math.log(share)
        for table, share in zip(tables, shares, strict=True)
    ]
    return torch.stack(parts).logsumexp(0).mul_(scoring.temperature)
