"""A teacher whose scores and responses are kept, or one that is its record alone.

Everything that it says goes through here: what the record has is not asked again, and without a teacher
behind it what the record lacks ends the run by a code. It knows no objective and no training step.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path

import torch

from opdcore.batches import Batch, sequences
from opdcore.contract.errors import EngineFailure
from opdcore.contract.training import Precision
from opdcore.inspection import ModelCard
from opdcore.models import LoadedModel
from opdcore.rendering import Renderer
from opdcore.response_cache import ResponseCache
from opdcore.rollouts import Rollout, Sampling, torch_sampler
from opdcore.score_record import KEY_BYTES, ScoreRecord
from opdcore.serving.model import ServedModel, as_side
from opdcore.serving.requests import Known
from opdcore.sides import KnownSide
from opdcore.teachers.telling import tell

# Raise it when a teacher would be told otherwise of the same text.
VERSION = 1
_SHOWN = 80


class NotKept(EngineFailure):
    """Something that a replayed teacher would have to be asked."""

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            "scores.not_kept",
            f"The teacher is replayed, and its record holds no {what}.",
            remedy="Replay with the recipe, seed, prompts and student of the run that kept it, on the same "
            "kind of device, or launch with the teacher itself.",
        )

    def at(self, step: int) -> NotKept:
        """The same, with the step at which it happened."""
        return NotKept(f"{self.what}, at step {step}")

    def __reduce__(self) -> tuple[object, ...]:
        return NotKept, (self.what,)


@contextmanager
def at_step(step: int) -> Iterator[None]:
    """What a record lacks within is said with the step."""
    try:
        yield
    except NotKept as error:
        raise error.at(step) from error


@dataclass(frozen=True)
class Wanted:
    """What decides a told text besides its tokens: how many tokens are told, among which, how exactly."""

    k: int
    vocabulary: int
    precision: Precision


@dataclass(frozen=True)
class RecordedModel:
    """A teacher with its record; `teacher` is None where it is replayed."""

    teacher: LoadedModel | ServedModel | None
    record: ScoreRecord
    responses: ResponseCache
    renderer: Renderer
    card: ModelCard
    folder: Path
    device: torch.device
    is_served: bool

    def side(self, batch: Batch, *, side: int, wanted: Wanted) -> KnownSide:
        """What it tells of a batch's positions."""
        given = sequences(batch, side=side)
        keys = [self._key(ids, start, wanted) for ids, start in given]
        known = self.record.recall(
            keys, lambda places: self._ask([given[i] for i in places], wanted, batch.size)
        )
        return as_side(known, k=wanted.k, device=self.device)

    def refuse_unkept(self, batch: Batch, *, side: int, wanted: Wanted) -> None:
        """Raises NotKept for the batch's first text that a replay cannot score."""
        if self.teacher is None:
            given = sequences(batch, side=side)
            missing = self.record.missing([self._key(*one, wanted) for one in given])
            if missing:
                raise self._lacks_score(*given[missing[0]])

    def respond(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seed: int
    ) -> list[Rollout]:
        """One rollout of each prompt, as it was drawn before or is now."""
        return self.responses.recall(
            prompts, sampling, seed, lambda: self._drawn(prompts, sampling, seed)
        )

    def _drawn(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[Rollout]:
        if self.teacher is None:
            raise NotKept(f"response to {self._shown(prompts[0])}, drawn with seed {seed}")
        if isinstance(self.teacher, ServedModel):
            return self.teacher.respond(prompts, sampling=sampling, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        return torch_sampler.sample(self.teacher, prompts, sampling=sampling, generator=generator)

    def _ask(
        self, given: Sequence[tuple[Sequence[int], int]], wanted: Wanted, tokens: int
    ) -> list[Known]:
        if self.teacher is None:
            raise self._lacks_score(*given[0])
        if isinstance(self.teacher, ServedModel):
            return self.teacher.known(given, k=wanted.k)
        return tell(
            self.teacher,
            given,
            k=wanted.k,
            vocabulary=wanted.vocabulary,
            precision=wanted.precision,
            tokens=tokens,
        )

    def _key(self, ids: Sequence[int], start: int, wanted: Wanted) -> bytes:
        # A server tells of its whole vocabulary, in its own precision.
        form = replace(wanted, vocabulary=0, precision="float32") if self.is_served else wanted
        told = f"{VERSION} {form.k} {form.vocabulary} {form.precision} {start} ".encode()
        digest = blake2b(told, digest_size=KEY_BYTES)
        digest.update(struct.pack(f"<{len(ids)}q", *ids))
        return digest.digest()

    def _lacks_score(self, ids: Sequence[int], start: int) -> NotKept:
        return NotKept(f"score of this response to {self._shown(ids[:start])}")

    def _shown(self, prompt: Sequence[int]) -> str:
        """A prompt for people, by its end."""
        text = self.renderer.decode(tuple(prompt))
        return repr(text if len(text) <= _SHOWN else f"...{text[-_SHOWN:]}")


# Whoever may teach.
AnyModel = LoadedModel | ServedModel | RecordedModel
