"""Responses to learn from: sampled from the teacher or taken from the prompts, and only sound ones kept.

They lie in the run's folder, so that a run that goes on does not ask again, and what was sampled also
where the job says, for other runs. Filters are those of
2604.13016, 5.1: what was cut or repeats itself is dropped; correctness is a choice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from opdcore import response_cache
from opdcore.contract.cold_start import ColdStartStage
from opdcore.contract.events import Progress
from opdcore.evaluation import grade
from opdcore.files import write_bytes
from opdcore.models import LoadedModel
from opdcore.order import probed, seed_of
from opdcore.rendering import Renderer
from opdcore.response_cache import ResponseCache
from opdcore.rollouts import Rollout, Sampling
from opdcore.rollouts.rollout import repeats
from opdcore.teachers import AnyModel
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
    found = _Found(stage, work)
    retries = 0 if stage.source == "demonstrations" else stage.retries
    for attempt in range(retries + 1):
        pending = [row for row in asked if row not in found.kept]
        for start in range(0, len(pending), ASKED_AT_ONCE):
            done = len(asked) - len(pending) + start
            yield Progress(what="collecting responses", done=done, total=len(asked), unit="prompts")
            rows = pending[start : start + ASKED_AT_ONCE]
            seed = seed_of(work.job.recipe.seed, stage_index, attempt, start)
            for author, its in source.by_author(rows):
                found.sift(its, author.written(its, seed), author)
    collected = found.collected(asked)
    _write(file, collected)
    yield collected


class _Source:
    """Whoever writes the responses: the teacher of each row, another model, or the prompts' own author."""

    def __init__(self, stage: ColdStartStage, work: Workspace) -> None:
        self.stage, self.work = stage, work
        self.authors: dict[int, _Author] = {}
        if stage.source == "writer" and work.writer is not None:
            loaded = work.writer.loaded(work.student.device)
            self.authors[0] = _Author(stage, work, loaded, work.writer.prompt_ids)
        elif stage.source == "demonstrations":
            self.authors[0] = _Author(stage, work, None, {})

    def by_author(self, rows: Sequence[int]) -> Iterator[tuple[_Author, list[int]]]:
        """The rows by who writes their responses."""
        if self.stage.source != "teacher":
            yield self.authors[0], list(rows)
            return
        work = self.work
        for number, its in work.teachers.by_lead(work.pool, rows).items():
            if number not in self.authors:
                ids = {row: sides[1 + number] for row, sides in work.prompt_ids.items()}
                model = work.side(1 + number)
                self.authors[number] = _Author(self.stage, work, model, ids)
            yield self.authors[number], its


class _Author:
    """One of them; `model` is None where the prompts bring their responses."""

    def __init__(
        self,
        stage: ColdStartStage,
        work: Workspace,
        model: AnyModel | None,
        prompt_ids: Mapping[int, Sequence[int]],
    ) -> None:
        self.stage, self.work, self.model, self._prompt_ids = stage, work, model, prompt_ids
        if model is not None:
            kept = work.job.response_cache
            # What is behind a server may change without a word, and a record keeps its own.
            folder = Path(kept) if kept and isinstance(model, LoadedModel) else None
            known_by = response_cache.whose(model.folder, model.device) if folder else []
            self.cache = ResponseCache(folder, known_by)

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
        prompts = [self._prompt_ids[row] for row in rows]
        generator = torch.Generator().manual_seed(seed)
        return self.cache.recall(
            prompts,
            sampling,
            seed,
            lambda: self.work.processes.sample(
                model, prompts, sampling=sampling, generator=generator
            ),
        )

    def learned(self, rollout: Rollout) -> tuple[int, ...]:
        """The response as the student writes it, without its end: another model's by its text."""
        if self.stage.source != "writer":
            return rollout.text_ids
        student = self.work.student.renderer
        (ids,) = student.responses([self.renderer.decode(rollout.text_ids)])
        return ids[: len(ids) - len(student.end)]

    def _demonstrated(self, row: int) -> Rollout:
        ids, longest = self.work.demonstrations[row], self.stage.max_response_tokens
        kept = tuple(ids[:longest])
        return Rollout(row, kept, (0.0,) * len(kept), len(ids) <= longest)


class _Found:
    """What was found sound so far, and why the rest was not."""

    def __init__(self, stage: ColdStartStage, work: Workspace) -> None:
        self.stage, self.work = stage, work
        self.kept: dict[int, tuple[int, ...]] = {}
        self._faults: dict[int, str] = {}
        self._said: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()

    def sift(self, rows: Sequence[int], rollouts: Sequence[Rollout], author: _Author) -> None:
        """Keeps what is sound as the student would have written it."""
        verifier = self.work.verifier if self.stage.only_correct else None
        prompts = [self.work.train[row] for row in rows]
        grades = grade(verifier, author.renderer, rollouts, prompts)
        for row, rollout, graded in zip(rows, rollouts, grades, strict=True):
            learned = author.learned(rollout)
            fault = self._fault(
                row,
                author.renderer.decode(rollout.text_ids),
                rollout,
                learned,
                correct=graded.correct,
            )
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
        self,
        row: int,
        text: str,
        rollout: Rollout,
        learned: tuple[int, ...],
        *,
        correct: bool | None,
    ) -> str | None:
        if not rollout.stopped or len(learned) > self.stage.max_response_tokens:
            return CUT
        if repeats(text):
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
