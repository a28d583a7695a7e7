"""Recipes as YAML, in and out; a fault names the knob's path and its line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from pydantic import ValidationError

from opdcore.contract.errors import BadInput, ErrorInfo
from opdcore.contract.recipe import Recipe as RecipeDocument
from webapp.services.recipe_faults import Fault, faults_of

LARGEST_BYTES = 256 << 10


class BadRecipe(BadInput):
    """A YAML document that is no recipe; `problems` holds every reason, with its line."""

    def __init__(self, problems: Sequence[ErrorInfo]) -> None:
        first = problems[0]
        super().__init__(first.code, first.message, remedy=first.remedy, field=first.field)
        self.problems = tuple(problems)


def write_yaml(document: RecipeDocument) -> str:
    """The whole document with every knob, in the contract's order."""
    return yaml.safe_dump(
        document.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100
    )


def read_yaml(text: str) -> RecipeDocument:
    """The recipe of a YAML text; raises BadRecipe with each fault's path and line."""
    if len(text.encode()) > LARGEST_BYTES:
        raise BadRecipe([_error("recipe.too_large", "The text is too long.", "Shorten it.", None)])
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_aliases(text)
        content = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        raise BadRecipe([_not_yaml(error)]) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # A character that no text holds, a date that is none, brackets without end.
        fault = f"This is no YAML that is taken: {str(error).splitlines()[0][:200]}."
        remedy = "Write plain text, numbers and lists, as the export of a recipe does."
        raise BadRecipe([_error("recipe.not_yaml", fault, remedy, None)]) from error
    if not isinstance(content, dict):
        remedy = "Write `name:` and `stages:`, as the export of a recipe does."
        raise BadRecipe([_error("recipe.not_a_mapping", "This is no mapping.", remedy, "line 1")])
    try:
        return RecipeDocument.model_validate(content)
    except ValidationError as error:
        faults = sorted(faults_of(error), key=lambda fault: _line_of(node, fault.path))
        raise BadRecipe([_located(fault, node) for fault in faults]) from error


def _refuse_aliases(text: str) -> None:
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else 1
            fault = "It uses an alias (*name), which may multiply a small text into a huge one."
            raise BadRecipe([_error("recipe.alias", fault, "Write it out.", f"line {line}")])


def _not_yaml(error: yaml.MarkedYAMLError) -> ErrorInfo:
    mark = error.problem_mark
    line = f"line {mark.line + 1}" if mark else None
    message = f"This is no YAML that is taken: {error.problem or error.context}."
    return _error("recipe.not_yaml", message, "Check indentation, colons and quotes.", line)


def _located(fault: Fault, node: yaml.Node | None) -> ErrorInfo:
    line = _line_of(node, fault.path)
    field = f"{fault.path} (line {line})" if fault.path else f"line {line}"
    return _error(f"recipe.{fault.kind}", fault.message, fault.remedy, field)


def _line_of(node: yaml.Node | None, path: str) -> int:
    """The line of the knob, or of the nearest thing around it that is written down."""
    line = 1
    for part in filter(None, path.split(".")):
        found = next(_inner(node, part), None)
        if found is None:
            break
        line, node = found
    return line


def _inner(node: yaml.Node | None, part: str) -> Iterator[tuple[int, yaml.Node]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == part:
                yield key.start_mark.line + 1, value
    elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        item: Any = node.value[int(part)]
        yield item.start_mark.line + 1, item


def _error(code: str, message: str, remedy: str, field: str | None) -> ErrorInfo:
    return ErrorInfo(code=code, message=message, remedy=remedy, field=field)
