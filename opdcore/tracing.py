"""A training step's trace: some of its rollouts, with the values that the passes left at their tokens.

It reads what the step left behind and changes nothing. Texts of the stage's first trace are read again
at every later one, so that their tokens can be watched while the student learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from opdcore import alignment as alignments
from opdcore import traces
from opdcore.alignment import Alignment
from opdcore.batches import Batch, response_hidden, spans
from opdcore.contract.distill import DistillStage
from opdcore.contract.events import ArtifactWritten, Payload, TraceWritten
from opdcore.files import hash_file
from opdcore.observation import observe
from opdcore.passes import Passed, scoring_of
from opdcore.rollouts import Rollout
from opdcore.sides import Side
from opdcore.step_report import ScoredStep
from opdcore.teachers import Panel
from opdcore.top_tokens import TopCollector, TopTokens, concatenate
from opdcore.traces import Text, TracedRollout, TracedTop
from opdcore.workspace import Workspace

# Texts that every trace of a stage reads again: enough to see learning, cheap beside a step's rollouts.
WATCHED = 2


@dataclass(frozen=True)
class Reading:
    """What both models made of some texts; `top` in the batches' order, of their positions alone."""

    texts: Sequence[Text]
    batches: Sequence[Batch]
    alignment: Alignment
    top: TopTokens


@dataclass(frozen=True)
class _Values:
    """Columns and tables of the passes, ready to be cut to one rollout."""

    columns: Mapping[str, NDArray[Any]]
    top: Mapping[str, NDArray[Any]]

    @classmethod
    def of(cls, alignment: Alignment, top: TopTokens) -> _Values:
        columns = {name: getattr(alignment, name) for name in traces.COLUMNS}
        tables = {field.name: getattr(top, field.name) for field in fields(top)}
        return cls(
            {name: column.cpu().numpy() for name, column in columns.items()},
            {name: table.cpu().numpy() for name, table in tables.items()},
        )

    def at(self, among_all: slice, among_top: slice) -> _Values:
        """The values of one rollout, which lies here among all positions and there among the top."""
        return _Values(
            {name: column[among_all] for name, column in self.columns.items()},
            {name: table[among_top] for name, table in self.top.items()},
        )


class _Show:
    """Puts texts and values together as they are kept; each token's text is looked up once a trace."""

    def __init__(self, work: Workspace) -> None:
        self._pool, self._prompt_text = work.pool, work.prompt_text
        self._renderer = work.student.renderer
        self._token_text = cache(work.student.renderer.token_text)

    def rollout(self, text: Text, values: _Values) -> TracedRollout:
        return TracedRollout(
            text=text,
            prompt=self._prompt_text(self._pool[text.prompt_index]),
            response=self._renderer.decode(text.ids[:-1] if text.stopped else text.ids),
            tokens=[self._token_text(token) for token in text.ids],
            columns=values.columns,
            top=self._top(values.top),
        )

    def _top(self, tables: Mapping[str, NDArray[Any]]) -> TracedTop:
        ids = {name: tables[name] for name in traces.TOP_IDS}
        distinct = sorted({token for table in ids.values() for token in table.ravel().tolist()})
        return TracedTop(
            width=ids["student_top_ids"].shape[1],
            ids=ids,
            logprobs={name: tables[name] for name in traces.TOP_LOGPROBS},
            ranks={name: tables[name] for name in traces.RANKS},
            texts={token: self._token_text(token) for token in distinct},
        )


def key(stage_index: int, step: int) -> str:
    """The trace's path within the run's folder."""
    return f"traces/stage-{stage_index:02d}-step-{step:07d}.parquet"


def size(stage: DistillStage, step: int) -> int:
    """How many of the step's own rollouts are traced; 0 where it is not a step of a trace."""
    if step % stage.trace_steps and step not in (1, stage.steps):
        return 0
    kept = stage.trace_rollouts - (_watched(stage) if step > 1 else 0)
    return min(kept, stage.prompts_per_step * stage.rollouts_per_prompt)


def read_again(
    stage: DistillStage, work: Workspace, *, stage_index: int, step: int
) -> Reading | None:
    """Both models over the first texts of the stage's first trace; None where none is at hand."""
    first = min((work.run_dir / "traces").glob(f"stage-{stage_index:02d}-*.parquet"), default=None)
    if first is None or first.name == Path(key(stage_index, step)).name or not _watched(stage):
        return None
    texts = traces.texts(first, _watched(stage))
    rollouts = [
        Rollout(index, tuple(text.ids), (0.0,) * len(text.ids), text.stopped)
        for index, text in enumerate(texts)
    ]
    rows = [text.prompt_index for text in texts]
    cut_up = work.batches(rows, rollouts, tokens=stage.micro_batch_tokens)
    return _reading(stage, work, texts, cut_up)


def write(
    work: Workspace, scored: ScoredStep, again: Reading | None, *, stage_index: int, step: int
) -> Iterator[Payload]:
    """Writes the step's trace: its own rollouts, then the texts that were read again."""
    name = key(stage_index, step)
    show = _Show(work)
    kept = _own(show, scored, step) + (_again(show, again) if again else [])
    traces.write(work.run_dir / name, kept, step=step)
    written = hash_file(work.run_dir / name)
    yield ArtifactWritten(
        artifact_kind="trace", key=name, sha256=written.sha256, size_bytes=written.size_bytes
    )
    told = tuple(rollout.text.prompt_index for rollout in kept)
    yield TraceWritten(key=name, rollouts=len(kept), prompts=told)


def _watched(stage: DistillStage) -> int:
    """How many texts are read again: at least one rollout of a trace is of its own step."""
    return min(WATCHED, stage.trace_rollouts - 1)


def _reading(
    stage: DistillStage,
    work: Workspace,
    texts: Sequence[Text],
    cut_up: Sequence[tuple[Panel, Batch]],
) -> Reading:
    parts, collectors = [], []
    for panel, batch in cut_up:
        ids = batch.sampled_ids.to(work.student.device)
        with torch.no_grad():
            hidden = response_hidden(work.student, batch, side=0, precision=stage.precision)
            student = Side(hidden, work.student.project)
            teacher = panel.side(batch, scoring_of(stage, work), student=student)
        collectors.append(TopCollector(torch.ones_like(ids, dtype=torch.bool)))
        parts.append(
            observe(
                student, teacher, ids, k=stage.k, vocabulary=work.vocabulary,
                temperature=stage.temperature, collector=collectors[-1],
            )
        )  # fmt: skip
    top = concatenate([collector.taken() for collector in collectors])
    batches = [batch for _, batch in cut_up]
    return Reading(texts, batches, alignments.concatenate(parts), top)


def _own(show: _Show, scored: ScoredStep, step: int) -> list[TracedRollout]:
    """The step's first rollouts, as many as the passes took the top tokens of."""
    passed = scored.passed
    if passed.top is None:
        return []
    everywhere, among = spans(passed.batches), _traced_spans(passed)
    values = _Values.of(passed.alignment, passed.top)
    return [
        show.rollout(_text(scored, index, step), values.at(everywhere[index], among[index]))
        for index in sorted(among)
    ]


def _again(show: _Show, again: Reading) -> list[TracedRollout]:
    values, places = _Values.of(again.alignment, again.top), spans(again.batches)
    return [
        show.rollout(text, values.at(places[index], places[index]))
        for index, text in enumerate(again.texts)
    ]


def _traced_spans(passed: Passed) -> dict[int, slice]:
    """Where each traced rollout's positions lie among those of all traced ones."""
    found, start = {}, 0
    for batch in passed.batches:
        for index, length in zip(batch.rollouts, batch.lengths, strict=True):
            if index < passed.traced:
                found[index] = slice(start, start + length)
                start += length
    return found


def _text(scored: ScoredStep, index: int, step: int) -> Text:
    rollout = scored.rollouts[index]
    return Text(
        prompt_index=scored.rows[index],
        ids=rollout.ids,
        stopped=rollout.stopped,
        correct=scored.grades[index].correct,
        written_step=step,
    )
