"""Whether a student and a teacher mean the same tokens: their maps compared, not their widths.

Two models of one tokenizer often differ in padded width; that is harmless, since both sides' logits
are cut to the shared ids. What cannot be repaired is an id that means two different tokens. It
loads no weights and decides about no recipe.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.errors import BadInput
from opdcore.inspection import DeclaredIds, ModelCard, inspect_with_tokenizer
from opdcore.tokenizer_files import TokenizerFiles, read_tokenizer

MAPS_DIFFER = "pair.token_maps_differ"

_SHOWN = 20

# A name kept free for later use: the model has learnt no meaning for its id.
_PLACEHOLDER = re.compile(
    r"^[<\[|]+\W*(reserved|unused|extra|placeholder|dummy|special)[\w ]*?\d+\W*[>\]|]+$"
)

_SAMPLE = (
    "Natalia sold 48 clips in April, and half as many in May. How many in all? 48 + 24 = 72.",
    "Let $x^2 - 5x + 6 = 0$; then $(x-2)(x-3) = 0$, so \\boxed{x = 2, 3}.",
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)  # tab:\t.\n",
    "Größe, naïve, Ελλάδα, Привет, 你好世界, こんにちは, नमस्ते, שלום, 👩🏽\u200d🔬 e\u0301",
    "  Two  spaces,\r\n\r\nUPPER lower, don't, 1234567.89, https://example.org/?a=b&c=d  ",
)


class TokenPair(Document):
    """An id with what each side means by it."""

    id: int = Field(description="The token's id.")
    student: str | None = Field(description="The student's token; None: it has none there.")
    teacher: str | None = Field(description="The teacher's token; None: it has none there.")


class PairWarning(Document):
    """A difference with which a run works, and what it does to the run."""

    code: str = Field(description="Stable identifier, such as `pair.eos_differ`.")
    message: str = Field(description="What differs.")
    consequence: str = Field(description="What happens in a run.")


class TokenMapReport(Document):
    """How the token maps of a pair compare."""

    verdict: Literal["same", "warning", "different"] = Field(description="different: refused.")
    code: str | None = Field(description="`pair.token_maps_differ`, or None.")
    summary: str = Field(description="The verdict in plain words.")
    shared_vocabulary: int = Field(description="Leading ids that both have; logits are cut here.")
    student_vocabulary: int = Field(description="Real tokens of the student.")
    teacher_vocabulary: int = Field(description="Real tokens of the teacher.")
    student_width: int = Field(description="Width of the student's logits.")
    teacher_width: int = Field(description="Width of the teacher's logits.")
    differing_count: int = Field(description="Ids that mean different tokens.")
    differing: tuple[TokenPair, ...] = Field(description="The first 20 of them.")
    one_sided_count: int = Field(description="Ids that only one side has a token for.")
    one_sided: tuple[TokenPair, ...] = Field(description="The first 20 of them.")
    warnings: tuple[PairWarning, ...] = Field(description="Differences with which a run works.")

    def refuse_if_different(self) -> None:
        """Raise BadInput where ids mean different tokens."""
        if self.verdict == "different":
            raise BadInput(
                MAPS_DIFFER,
                self.summary,
                remedy="Choose a teacher with the student's tokenizer.",
                field="pair.teachers",
            )


@dataclass(frozen=True, slots=True)
class _Side:
    """What one side of the comparison brings."""

    card: ModelCard
    files: TokenizerFiles

    @property
    def token_map(self) -> Mapping[int, str]:
        return self.files.token_map


@dataclass(frozen=True, slots=True)
class _Differences:
    """Ids whose tokens differ, and ids that only one side has learnt."""

    differing: tuple[TokenPair, ...]
    one_sided: tuple[TokenPair, ...]
    shared: int


def compare(
    student_folder: Path | str, teacher_folder: Path | str, *, teacher: ModelCard | None = None
) -> TokenMapReport:
    """Compare two model folders; raise BadInput where one of them cannot be read.

    With the teacher's card its folder needs a tokenizer alone.
    """
    return _report(_side(Path(student_folder)), _side(Path(teacher_folder), teacher))


def _report(student: _Side, teacher: _Side) -> TokenMapReport:
    found = _differences(student, teacher)
    warnings = tuple(_warnings(student, teacher, found))
    verdict: Literal["same", "warning", "different"]
    verdict = "different" if found.differing else "warning" if warnings else "same"
    return TokenMapReport(
        verdict=verdict,
        code=MAPS_DIFFER if found.differing else None,
        summary=_summary(found, warnings),
        shared_vocabulary=found.shared,
        student_vocabulary=student.card.vocabulary,
        teacher_vocabulary=teacher.card.vocabulary,
        student_width=student.card.padded_vocabulary,
        teacher_width=teacher.card.padded_vocabulary,
        differing_count=len(found.differing),
        differing=found.differing[:_SHOWN],
        one_sided_count=len(found.one_sided),
        one_sided=found.one_sided[:_SHOWN],
        warnings=warnings,
    )


def _side(folder: Path, card: ModelCard | None = None) -> _Side:
    if card is not None:
        return _Side(card, read_tokenizer(folder))
    return _Side(*inspect_with_tokenizer(folder))


def _differences(student: _Side, teacher: _Side) -> _Differences:
    """Sort each id into same, differing or one-sided, and find where the shared ids end.

    A placeholder counts as shared where the other side has a name for it: cutting there would
    remove the end-of-turn tokens that often follow.
    """
    differing: list[TokenPair] = []
    one_sided: list[TokenPair] = []
    ends = [student.card.padded_vocabulary, teacher.card.padded_vocabulary]
    for token_id in _ids_that_differ(student.token_map, teacher.token_map):
        ours, theirs = student.token_map.get(token_id), teacher.token_map.get(token_id)
        pair = TokenPair(id=token_id, student=ours, teacher=theirs)
        if ours is not None and theirs is not None and _is_placeholder(ours, theirs):
            one_sided.append(pair)
            continue
        (one_sided if ours is None or theirs is None else differing).append(pair)
        ends.append(token_id)
    shared = _real_end(student.token_map, min(ends))
    return _Differences(tuple(differing), tuple(one_sided), shared)


def _ids_that_differ(ours: Mapping[int, str], theirs: Mapping[int, str]) -> list[int]:
    return sorted({token_id for token_id, _ in ours.items() ^ theirs.items()})


def _is_placeholder(*tokens: str) -> bool:
    return any(_PLACEHOLDER.match(token) for token in tokens)


def _real_end(token_map: Mapping[int, str], end: int) -> int:
    """One past the last real id below `end`, so that no padding row is compared."""
    while end > 0 and end - 1 not in token_map:
        end -= 1
    return end


def _summary(found: _Differences, warnings: tuple[PairWarning, ...]) -> str:
    if found.differing:
        first = found.differing[0]
        return (
            f"The token maps differ: {len(found.differing)} ids mean different tokens, the first "
            f"is id {first.id} ({_shown(first.student)} for the student, {_shown(first.teacher)} for the "
            "teacher), so the teacher would score other text than the student wrote."
        )
    if warnings:
        return f"The {found.shared} shared ids mean the same tokens; mind: " + " ".join(
            warning.message for warning in warnings
        )
    return f"Student and teacher share all {found.shared} tokens and their special ids."


def _shown(token: str | None) -> str:
    """A token as a message quotes it; some vocabularies have tokens of hundreds of characters."""
    return "none" if token is None else repr(token if len(token) <= 40 else token[:40] + "…")


def _warnings(student: _Side, teacher: _Side, found: _Differences) -> Iterator[PairWarning]:
    yield from _one_sided_warning(found)
    yield from _encoding_warning(student, teacher)
    yield from _special_warnings(student, teacher)
    yield from _unlearnt_stop_warning(student, found)
    yield from _template_warning(student, teacher)


def _one_sided_warning(found: _Differences) -> Iterator[PairWarning]:
    if found.one_sided:
        first = found.one_sided[0]
        yield PairWarning(
            code="pair.one_sided_tokens",
            message=f"{len(found.one_sided)} ids are tokens of one side only, the first is "
            f"{first.id} ({_shown(first.student or first.teacher)}).",
            consequence=f"Logits are compared and rollouts drawn over the first {found.shared} ids; "
            "a token beyond them is never written.",
        )


def _encoding_warning(student: _Side, teacher: _Side) -> Iterator[PairWarning]:
    for text in _SAMPLE:
        ours = student.files.tokenizer.encode(text, add_special_tokens=False)
        theirs = teacher.files.tokenizer.encode(text, add_special_tokens=False)
        if ours.ids != theirs.ids:
            yield PairWarning(
                code="pair.encodings_differ",
                message=f"The two tokenizers split the same text differently "
                f"({len(ours.ids)} and {len(theirs.ids)} tokens for {text[:40]!r}).",
                consequence="The teacher scores the student's ids, which are valid but not how it "
                "would have written them, so its log-probabilities are lower than its judgement.",
            )
            return


_SPECIALS = {
    "eos": "A response ends at any of the student's ids; where the teacher ends by another id, it "
    "scores the student's ending as unlikely. Map them with the rendering's extra stop ids.",
    "bos": "Each side's prompts begin its own way; responses are unaffected.",
    "pad": "Padding is masked on both sides; nothing changes.",
}


def _special_warnings(student: _Side, teacher: _Side) -> Iterator[PairWarning]:
    sides = ((student, "student"), (teacher, "teacher"))
    for name, consequence in _SPECIALS.items():
        ours, theirs = _declared(student, name), _declared(teacher, name)
        if ours.all() != theirs.all():
            yield PairWarning(
                code=f"pair.{name}_differ",
                message=f"{name.upper()} ids differ: "
                + ", ".join(f"{who} {_named(side, name)}" for side, who in sides)
                + ".",
                consequence=consequence,
            )
    for side, who in sides:
        yield from _undecided_eos_warning(side, who)


def _declared(side: _Side, name: str) -> DeclaredIds:
    return {"eos": side.card.eos, "bos": side.card.bos, "pad": side.card.pad}[name]


def _named(side: _Side, name: str) -> str:
    ids = _declared(side, name).all()
    return " and ".join(f"{one} ({_shown(side.token_map.get(one))})" for one in ids) or "none"


def _undecided_eos_warning(side: _Side, who: str) -> Iterator[PairWarning]:
    """Qwen's base models, for example, declare another EOS in config.json than the tokenizer."""
    eos = side.card.eos
    if not eos.all():
        yield PairWarning(
            code="pair.no_eos",
            message=f"The {who} declares no end of a response.",
            consequence="Its responses run to the length limit unless extra stop ids are given.",
        )
    elif eos.tokenizer and eos.config and not set(eos.tokenizer) & set(eos.config):
        yield PairWarning(
            code="pair.eos_undecided",
            message=f"The {who}'s tokenizer ends by {eos.tokenizer[0]}, its config by "
            f"{eos.config[0]}.",
            consequence=f"Each of {', '.join(map(str, eos.all()))} ends a response.",
        )


def _unlearnt_stop_warning(student: _Side, found: _Differences) -> Iterator[PairWarning]:
    beyond = [one for one in student.card.eos.all() if one >= found.shared]
    if beyond:
        yield PairWarning(
            code="pair.stop_beyond_shared",
            message=f"The student ends by {beyond[0]}, beyond the {found.shared} shared ids.",
            consequence="It is never written: without another stop id every rollout runs to its "
            "limit.",
        )


def _template_warning(student: _Side, teacher: _Side) -> Iterator[PairWarning]:
    ours, theirs = student.card.chat_template_sha256, teacher.card.chat_template_sha256
    if ours == theirs:
        return
    have = [who for who, one in (("student", ours), ("teacher", theirs)) if one is not None]
    both = len(have) == 2
    yield PairWarning(
        code="pair.templates_differ",
        message="The chat templates differ."
        if both
        else f"Only the {have[0]} has a chat template.",
        consequence="Each side reads the prompt in its own rendering and scores the same response "
        "ids."
        if both
        else "A raw prompt is wrapped as a chat on that side only; set its chat_template to none "
        "to render both alike.",
    )
