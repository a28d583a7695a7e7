"""Rollouts that another trainer dumped: JSON lines of prompts and responses, matched with a prompt set.

TRL writes `prompt` and `completion`, verl `input` and `output`; `prompt` and `response` are read too. A
dump holds text, so responses are encoded anew, and one shorter than the limit counts as ended by
itself. It needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opdcore.contract.errors import BadInput
from opdcore.contract.prompt import Prompt
from opdcore.rendering import Renderer

PROMPT_FIELDS = ("prompt", "input")
RESPONSE_FIELDS = ("response", "completion", "output")


@dataclass(frozen=True)
class Dumped:
    """One line: what was asked, as plain text, and what the student wrote."""

    line: int
    prompt: str
    response: str


def read(path: Path) -> list[Dumped]:
    """All lines of a dump; raises BadInput that names line, field and remedy."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BadInput(
            "rollouts.unreadable",
            f"{path} cannot be read: {error.strerror}.",
            remedy="Name a file of JSON lines.",
            field="--rollouts",
        ) from error
    dumped = [
        _parsed(line, f"{path}, line {number}", number)
        for number, line in enumerate(content.splitlines(), start=1)
        if line.strip()
    ]
    if not dumped:
        raise BadInput(
            "rollouts.empty",
            f"{path} has no rollout.",
            remedy="Give at least one line with a prompt and a response.",
            field="--rollouts",
        )
    return dumped


def match(
    dumped: Sequence[Dumped], prompts: Sequence[Prompt], renderer: Renderer, *, path: Path
) -> dict[int, list[Dumped]]:
    """The rollouts by row of the prompt set; raises BadInput where a prompt is none of the set's."""
    rows: dict[str, int] = {}
    for row, texts in enumerate(_known_as(prompts, renderer)):
        for text in texts:
            rows.setdefault(text.strip(), row)
    found: dict[int, list[Dumped]] = {}
    for one in dumped:
        asked = one.prompt.strip()
        if asked not in rows:
            raise _bad(
                f"{path}, line {one.line}, prompt",
                f"{one.prompt[:80]!r} is none of the {len(prompts)} prompts.",
                "Give --prompts the set that the rollouts answer, with its answers.",
            )
        found.setdefault(rows[asked], []).append(one)
    return found


def encode(
    found: Mapping[int, Sequence[Dumped]], renderer: Renderer, *, longest: int
) -> dict[int, list[tuple[tuple[int, ...], bool]]]:
    """Ids of each response by row, and whether it ended by itself rather than at the limit."""
    return {
        row: [
            _ended(ids, renderer, longest)
            for ids in renderer.responses([one.response for one in some])
        ]
        for row, some in found.items()
    }


def _ended(ids: tuple[int, ...], renderer: Renderer, longest: int) -> tuple[tuple[int, ...], bool]:
    """A text that spells its own end token gets no second one."""
    stops = set(renderer.stop_ids)
    if len(ids) > 1 and ids[-1] in stops and ids[-2] in stops:
        ids = ids[:-1]
    return ids[:longest], len(ids) <= longest and ids[-1] in stops


def _known_as(prompts: Sequence[Prompt], renderer: Renderer) -> Iterator[set[str]]:
    """What trainers write for each prompt: as given, as rendered, and without special tokens."""
    for prompt, rendered in zip(prompts, renderer.render_many(prompts), strict=True):
        plain = renderer.decode(rendered.ids, keep_special=False)
        last = {prompt.messages[-1].content} if prompt.messages else set()
        yield {prompt.question, rendered.text, plain, *last}


def _parsed(line: bytes, where: str, number: int) -> Dumped:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _bad(where, f"It is no JSON: {error}.", "Write one JSON object a line.") from error
    if not isinstance(row, dict):
        raise _bad(where, f"It is {str(row)[:40]!r}, no object.", "Write one JSON object a line.")
    prompt = _text(row, PROMPT_FIELDS, where)
    response = _text(row, RESPONSE_FIELDS, where)
    return Dumped(number, prompt, response)


def _text(row: Mapping[str, Any], fields: Sequence[str], where: str) -> str:
    """The first of the fields that is there, as text; chat turns are joined as a prompt's are."""
    field = next((name for name in fields if name in row), None)
    if field is None:
        raise _bad(
            where,
            f"It has no {' or '.join(fields)}, only {', '.join(row) or 'nothing'}.",
            f"Name the field {fields[0]}.",
        )
    value = row[field]
    if isinstance(value, list):
        value = _spoken(value, answers=fields is RESPONSE_FIELDS)
    if not isinstance(value, str) or not value.strip():
        raise _bad(
            f"{where}, {field}",
            f"It is {str(row[field])[:40]!r}, no text.",
            "Give the text, or chat turns with role and content.",
        )
    return value


def _spoken(turns: Sequence[Any], *, answers: bool) -> str | None:
    """The text of chat turns; None where they are none."""
    if not turns or not all(
        isinstance(turn, dict) and isinstance(turn.get("content"), str) for turn in turns
    ):
        return None
    if answers or len(turns) == 1:
        return "".join(turn["content"] for turn in turns)
    return "\n\n".join(f"{turn.get('role', 'user')}: {turn['content']}" for turn in turns)


def _bad(where: str, message: str, remedy: str) -> BadInput:
    return BadInput("rollouts.line", message, remedy=remedy, field=where)
