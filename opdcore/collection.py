"""Responses to learn from: sampled from the teacher or taken from the prompts, and only sound ones kept.

They lie in the run's folder, so that a run that goes on does not ask again, and what was sampled also
where the job says, for other runs. Filters are those of
2604.13016, 5.1: what was cut or repeats itself is dropped; correctness is a choice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.events import Progress
from opdcore.evaluation import grade
from opdcore.files import write_bytes
from opdcore.models import LoadedModel
from opdcore.order import probed, seed_of
from opdcore.rendering import Renderer
from opdcore.response_cache import ResponseCache
from opdcore.rollouts import Rollout, Sampling, sample
from opdcore.rollouts.rollout import repeats
from opdcore.workspace import Workspace

FOLDER = "responses"
# So many prompts are asked between two words about how far it is.
ASKED_AT_ONCE = 256
# Why a response is not learned.
CUT, REPEATING, FOREIGN = "cut", "repeating themselves", "in tokens that the student lacks"
WRONG, DUPLICATE = "not found right", "said before"


@dataclass(frozen=True)
class Collected:
    """Responses by row, in the order in which they were asked for, and why others were dropped."""

    responses: dict[int, tuple[int, ...]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)

    def told(self) -> str:
        """What became of the prompts, for people."""
        kept, lost = len(self.responses), sum(self.dropped.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
        return (
            f"{kept} of {kept + lost} responses are kept{f'; dropped: {reasons}' if lost else ''}."
        )


def collect(
    stage: ColdStartStage, work: Workspace, *, stage_index: int
) -> Iterator[Progress | Collected]:
    """Yields progress and last what is kept, from the run's folder where it was collected before."""
    file = work.run_dir / FOLDER / f"stage-{stage_index:02d}.json"
    if file.exists():
        yield _read(file)
        return
    asked = probed(
        len(work.train),
        at_most=stage.prompts + stage.held_out_prompts,
        seed=work.job.recipe.seed,
        stage_index=stage_index,
    )
    source = _Source(stage, work)
    found = _Found(stage, work, source)
    retries = 0 if source.model is None else stage.retries
    for attempt in range(retries + 1):
        pending = [row for row in asked if row not in found.kept]
        for start in range(0, len(pending), ASKED_AT_ONCE):
            done = len(asked) - len(pending) + start
            yield Progress(what="collecting responses", done=done, total=len(asked), unit="prompts")
            rows = pending[start : start + ASKED_AT_ONCE]
            seed = seed_of(work.job.recipe.seed, stage_index, attempt, start)
            found.sift(rows, source.written(rows, seed))
    collected = found.collected(asked)
    _write(file, collected)
    yield collected


class _Source:
    """Whoever writes the responses: the teacher, another model, or the prompts' own author."""

    def __init__(self, stage: ColdStartStage, work: Workspace) -> None:
        self.stage, self.work = stage, work
        self.model = _author(stage, work)
        if self.model is not None:
            kept = work.job.response_cache
            folder = Path(kept) if kept else None
            self.cache = ResponseCache(folder, self.model.folder, self.model.device)

    @property
    def renderer(self) -> Renderer:
        """Whose ids the responses are in."""
        return (self.model or self.work.student).renderer

    def written(self, rows: Sequence[int], seed: int) -> list[Rollout]:
        """One response to each row."""
        model = self.model
        if model is None:
            return [self._demonstrated(row) for row in rows]
        sampling = Sampling(
            max_tokens=self.stage.max_response_tokens,
            temperature=self.stage.temperature,
            top_p=self.stage.sampling_top_p,
            # It may end by a token that the pair does not share.
            vocabulary=model.card.vocabulary,
            stop_ids=frozenset(model.renderer.stop_ids),
        )
        prompts = [self._prompt(row) for row in rows]
        generator = torch.Generator().manual_seed(seed)
        return self.cache.recall(
            prompts,
            sampling,
            seed,
            lambda: sample(model, prompts, sampling=sampling, generator=generator),
        )

    def learned(self, rollout: Rollout) -> tuple[int, ...]:
        """The response as the student writes it, without its end: another model's by its text."""
        if self.stage.source != "writer":
            return rollout.text_ids
        student = self.work.student.renderer
        (ids,) = student.responses([self.renderer.decode(rollout.text_ids)])
        return ids[: len(ids) - len(student.end)]

    def _prompt(self, row: int) -> Sequence[int]:
        writer = self.work.writer if self.stage.source == "writer" else None
        return self.work.prompt_ids[row][1] if writer is None else writer.prompt_ids[row]

    def _demonstrated(self, row: int) -> Rollout:
        ids, longest = self.work.demonstrations[row], self.stage.max_response_tokens
        kept = tuple(ids[:longest])
        return Rollout(row, kept, (0.0,) * len(kept), len(ids) <= longest)


def _author(stage: ColdStartStage, work: Workspace) -> LoadedModel | None:
    """The model that writes; None where the prompts bring their responses."""
    if stage.source == "teacher":
        return work.teacher
    if stage.source == "writer" and work.writer is not None:
        return work.writer.loaded(work.student.device)
    return None


class _Found:
    """What was found sound so far, and why the rest was not."""

    def __init__(self, stage: ColdStartStage, work: Workspace, source: _Source) -> None:
        self.stage, self.work, self.source = stage, work, source
        self.kept: dict[int, tuple[int, ...]] = {}
        self._faults: dict[int, str] = {}
        self._said: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()

    def sift(self, rows: Sequence[int], rollouts: Sequence[Rollout]) -> None:
        """Keeps what is sound as the student would have written it."""
        verifier = self.work.verifier if self.stage.only_correct else None
        prompts = [self.work.train[row] for row in rows]
        grades = grade(verifier, self.source.renderer, rollouts, prompts)
        for row, rollout, graded in zip(rows, rollouts, grades, strict=True):
            learned = self.source.learned(rollout)
            fault = self._fault(row, rollout, learned, correct=graded.correct)
            if fault is not None:
                self._faults[row] = fault
                continue
            self.kept[row] = (*learned, *self.work.student.renderer.end)
            self._said.add((self.work.prompt_ids[row][0], learned))

    def collected(self, asked: Sequence[int]) -> Collected:
        return Collected(
            {row: self.kept[row] for row in asked if row in self.kept},
            dict(Counter(self._faults[row] for row in asked if row not in self.kept)),
        )

    def _fault(
        self, row: int, rollout: Rollout, learned: tuple[int, ...], *, correct: bool | None
    ) -> str | None:
        if not rollout.stopped or len(learned) > self.stage.max_response_tokens:
            return CUT
        if repeats(self.source.renderer.decode(rollout.text_ids)):
            return REPEATING
        if any(token >= self.work.vocabulary for token in learned):
            return FOREIGN
        if self.stage.only_correct and correct is not True:
            return WRONG
        return DUPLICATE if (self.work.prompt_ids[row][0], learned) in self._said else None


def _write(file: Path, collected: Collected) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_suffix(".part")
    write_bytes(aside, json.dumps(asdict(collected)).encode())
    aside.rename(file)


def _read(file: Path) -> Collected:
    told = json.loads(file.read_bytes())
    responses = {int(row): tuple(ids) for row, ids in told["responses"].items()}
    return Collected(responses, told["dropped"])
