"""The static tier: what two model folders and some prompts say before anything is loaded or sampled.

Token maps, end and stop tokens, special tokens, templates, thinking modes, privileged texts, and whether
both folders hold the same weights. It loads no weights, needs no torch, and draws no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opdcore import token_maps
from opdcore.contract.errors import BadInput
from opdcore.contract.probe import DiagnoseStage, Finding, Probe, Provenance, Relation, Severity
from opdcore.contract.prompt import Prompt
from opdcore.contract.teacher import Privileged
from opdcore.inspection import inspect
from opdcore.rendering import Renderer
from opdcore.token_maps import PairWarning, TokenMapReport

# Prompts that both sides render to be compared.
RENDERED = 64


@dataclass(frozen=True)
class Side:
    """A model's folder and the renderer that reads prompts for it."""

    folder: Path
    renderer: Renderer


# How much each difference of token maps matters, and what to do about it. End tokens are compared below
# as the renderings have them.
_PAIR: dict[str, tuple[Severity, str]] = {
    "pair.one_sided_tokens": ("note", "Nothing, unless the task needs these tokens."),
    "pair.encodings_differ": (
        "warning",
        "Choose a teacher with the student's tokenizer, or expect lower token rewards.",
    ),
    "pair.bos_differ": ("note", "Nothing: each side's prompts begin its own way."),
    "pair.pad_differ": ("note", "Nothing: padding is masked."),
    "pair.no_eos": ("warning", "Give that side's rendering extra_stop_ids."),
    "pair.eos_undecided": ("note", "Name the right one in the folder's generation_config.json."),
    "pair.stop_beyond_shared": (
        "warning",
        "Give the student's rendering a stop id that both share.",
    ),
    "pair.templates_differ": (
        "warning",
        "Keep each side's own template if it was trained on it; else set chat_template alike.",
    ),
}

_MODES = {None: "left to the template", True: "on", False: "off"}


def findings(
    student: Side,
    teacher: Side,
    prompts: Sequence[Prompt],
    privileged: Privileged | None = None,
) -> tuple[Finding, ...]:
    """Everything that is so before sampling, refusals first; raises BadInput for unreadable folders.

    `privileged` is what the teacher reads besides the prompt.
    """
    report = token_maps.compare(student.folder, teacher.folder)
    found = [
        *_maps(report),
        *_stops(student, teacher, report.shared_vocabulary),
        *_special_tokens(student, teacher),
        *_thinking(student, teacher),
        *_renderings(student, teacher, prompts),
        *_privileged(prompts, privileged),
        *(_same_weights(student, teacher) if privileged is None else ()),
    ]
    order = ("refusal", "warning", "note")
    return tuple(sorted(found, key=lambda one: order.index(one.severity)))


def provenance(relation: Relation, found: Sequence[Finding]) -> Provenance:
    """The relation as it was stated, or identical where both folders hold the same weights."""
    if relation != "unknown":
        return Provenance(relation=relation, stated=True)
    same = any(one.code == "setup.same_weights" for one in found)
    return Provenance(relation="identical" if same else "unknown")


def refuses(found: Sequence[Finding]) -> bool:
    """Whether something was found with which no run can work."""
    return any(one.severity == "refusal" for one in found)


def probe(
    stage: DiagnoseStage, found: tuple[Finding, ...], *, verifier: str, seconds: float
) -> Probe:
    """A probe of this tier alone."""
    return Probe(
        tiers=("static",),
        prompts=0,
        rollouts_per_prompt=0,
        k=stage.k,
        verifier=verifier,
        findings=found,
        provenance=provenance(stage.relation, found),
        seconds=seconds,
    )


def _maps(report: TokenMapReport) -> Iterator[Finding]:
    if report.verdict == "different":
        yield Finding(
            code=token_maps.MAPS_DIFFER,
            severity="refusal",
            message=report.summary,
            remedy="Choose a teacher with the student's tokenizer.",
        )
    for warning in report.warnings:
        if warning.code in _PAIR:
            yield _of_pair(warning)


def _of_pair(warning: PairWarning) -> Finding:
    severity, remedy = _PAIR[warning.code]
    message = f"{warning.message} {warning.consequence}"
    return Finding(code=warning.code, severity=severity, message=message, remedy=remedy)


def _stops(student: Side, teacher: Side, shared: int) -> Iterator[Finding]:
    ours, theirs = set(student.renderer.stop_ids), set(teacher.renderer.stop_ids)
    if ours != theirs:
        yield Finding(
            code="setup.stop_ids_differ",
            severity="warning",
            message=f"The student ends a response by {_named(student, ours)}, the teacher by "
            f"{_named(teacher, theirs)}; where only one of them would end, the reward punishes it.",
            remedy="Give the side that lacks them extra_stop_ids, or mask stop tokens in the objective.",
        )
    if not any(one < shared for one in ours):
        yield Finding(
            code="setup.student_cannot_stop",
            severity="warning",
            message="The student has no end token among the shared ones, so each rollout runs to its "
            "limit.",
            remedy="Give the student's rendering extra_stop_ids.",
        )


def _special_tokens(student: Side, teacher: Side) -> Iterator[Finding]:
    apart = student.renderer.special_ids ^ teacher.renderer.special_ids
    if apart:
        yield Finding(
            code="setup.special_tokens_differ",
            severity="warning",
            message=f"{len(apart)} tokens are special on one side only: {_named(student, apart)}.",
            remedy="Mask special tokens in the objective if their reward dominates.",
        )


def _thinking(student: Side, teacher: Side) -> Iterator[Finding]:
    ours, theirs = student.renderer.rendering.thinking, teacher.renderer.rendering.thinking
    if ours != theirs:
        yield Finding(
            code="setup.thinking_differs",
            severity="warning",
            message=f"Thinking is {_MODES[ours]} for the student and {_MODES[theirs]} for the teacher; "
            "they would begin in different ways.",
            remedy="Set the same thinking mode in both renderings.",
        )


def _renderings(student: Side, teacher: Side, prompts: Sequence[Prompt]) -> Iterator[Finding]:
    """Prompts that a side cannot read at all, and how many both read differently."""
    different, some = 0, prompts[:RENDERED]
    for row, prompt in enumerate(some):
        try:
            ids = [side.renderer.render(prompt).ids for side in (student, teacher)]
        except BadInput as error:
            yield _unreadable(error, row)
            return
        different += ids[0] != ids[1]
    if different:
        yield Finding(
            code="setup.prompts_render_differently",
            severity="note",
            message=f"{different} of {len(some)} prompts become other tokens for the teacher than for "
            "the student.",
            remedy="Look at both previews; a teacher in its own template often scores better.",
        )


def _unreadable(error: BadInput, row: int) -> Finding:
    return Finding(
        code=error.info.code,
        severity="refusal",
        message=f"Prompt {row + 1}: {error.info.message}",
        remedy=error.info.remedy,
    )


def _privileged(prompts: Sequence[Prompt], privileged: Privileged | None) -> Iterator[Finding]:
    texts = {prompt.privileged for prompt in prompts}
    count = sum(prompt.privileged is not None for prompt in prompts)
    if privileged is not None and privileged.source == "prompt" and len(texts) > 1:
        yield Finding(
            code="setup.privileged_per_prompt",
            severity="refusal",
            message=f"The teacher reads a privileged text of each prompt's own, {len(texts)} different "
            f"ones in {len(prompts)} prompts. The student cannot know them in use: it learns what is "
            "likely under all of them, and what depends on one of them is lost.",
            remedy="Give the teacher one rule for all prompts, or reinforce on the answers.",
        )
    elif privileged is None and count:
        yield Finding(
            code="setup.privileged_unused",
            severity="note",
            message=f"{count} prompts have privileged text, which no stage shows to the teacher.",
            remedy="Nothing: the run goes without it.",
        )


def _same_weights(student: Side, teacher: Side) -> Iterator[Finding]:
    prints = [inspect(side.folder).weights_fingerprint for side in (student, teacher)]
    if prints[0] == prints[1]:
        yield Finding(
            code="setup.same_weights",
            severity="warning",
            message="Student and teacher are the same weights.",
            remedy="Choose a teacher that was trained further.",
        )


def _named(side: Side, ids: set[int] | frozenset[int]) -> str:
    shown = [f"{one} ({side.renderer.token_text(one)!r})" for one in sorted(ids)[:5]]
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return (", ".join(shown) or "none") + more
