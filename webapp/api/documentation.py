"""The API's documentation as a page, read from its OpenAPI document. It knows no router."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET
from ninja import NinjaAPI

JsonSchema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter or a property: its type in words, and the schema that the type names."""

    name: str
    words: str
    schema: str | None
    required: bool
    default: object
    help: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one address."""

    name: str
    method: str
    path: str
    summary: str
    description: str
    parameters: list[Field]
    body: str | None
    reply: str | None
    status: str


@dataclass(frozen=True, slots=True)
class Group:
    """The operations of one noun."""

    title: str
    operations: list[Operation]


@dataclass(frozen=True, slots=True)
class Shape:
    """A body or a reply."""

    name: str
    description: str
    fields: list[Field]


@require_GET
def page(request: HttpRequest, api: NinjaAPI) -> HttpResponse:
    """All operations by noun, then the shapes of what they take and give."""
    document = api.get_openapi_schema()
    context = {
        "description": document["info"]["description"],
        "groups": groups(document),
        "shapes": shapes(document),
    }
    return render(request, "api/docs.html", context)


def groups(document: JsonSchema) -> list[Group]:
    """The operations, in the order in which they are declared."""
    found: dict[str, list[Operation]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found.setdefault(operation["tags"][0], []).append(_operation(path, method, operation))
    return [Group(title, operations) for title, operations in found.items()]


def shapes(document: JsonSchema) -> list[Shape]:
    """Every object that a body or a reply is made of, by name."""
    schemas = document["components"]["schemas"]
    return [
        Shape(name, schemas[name].get("description", ""), list(_properties(schemas[name])))
        for name in sorted(_reached(document))
        if "properties" in schemas[name]
    ]


def _reached(document: JsonSchema) -> set[str]:
    """Names of the schemas that bodies and replies lead to; parameters are told where they are."""
    found: set[str] = set()
    waiting = set(_names(document["paths"]))
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= set(_names(document["components"]["schemas"][name])) - found
    return found


def _names(part: Any) -> Iterator[str]:  # noqa: ANN401 (JSON)
    """Every schema that is named anywhere in this part of the document."""
    if isinstance(part, dict):
        if isinstance(reference := part.get("$ref"), str):
            yield reference.rsplit("/", 1)[-1]
        for inner in part.values():
            yield from _names(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _names(inner)


def _operation(path: str, method: str, operation: JsonSchema) -> Operation:
    replies = operation["responses"]
    status = min((str(code) for code in replies), default="200")
    sent = operation.get("requestBody", {}).get("content", {})
    parameters = operation.get("parameters", ())
    return Operation(
        name=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation["summary"],
        description=operation.get("description", ""),
        parameters=[
            *(_field(one["name"], one["schema"], one["required"]) for one in parameters),
            *_form_fields(sent),
        ],
        body=_named(sent),
        reply=_named(replies[_key(replies, status)].get("content", {})) if status < "300" else None,
        status=status if status < "300" else "200",
    )


def _form_fields(content: JsonSchema) -> Iterator[Field]:
    """Fields of a form, which have no name as a document."""
    for media in content.values():
        if "properties" in media["schema"]:
            yield from _properties(media["schema"])


def _key(replies: JsonSchema, status: str) -> Any:  # noqa: ANN401 (Ninja's keys are int or str)
    return next(code for code in replies if str(code) == status)


def _named(content: JsonSchema) -> str | None:
    """The name of the schema of the first content type."""
    for media in content.values():
        return _reference(media["schema"])
    return None


def _reference(schema: JsonSchema) -> str | None:
    """The name of the object that this type is, holds, or may be."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    inner = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    inner += [schema["items"]] if isinstance(schema.get("items"), dict) else []
    inner += [extra] if isinstance(extra := schema.get("additionalProperties"), dict) else []
    return next(filter(None, map(_reference, inner)), None)


def _properties(schema: JsonSchema) -> Iterator[Field]:
    required = schema.get("required", ())
    for name, inner in schema["properties"].items():
        yield _field(name, inner, name in required)


def _field(name: str, schema: JsonSchema, required: bool) -> Field:  # noqa: FBT001 (OpenAPI's word)
    return Field(
        name=name,
        words=words(schema),
        schema=_reference(schema),
        required=required,
        default=schema.get("default"),
        help=schema.get("description", ""),
    )


def words(schema: JsonSchema) -> str:
    """A type as a reader says it: `list of Prompt`, `number or null`."""
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[-1])
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    several = [*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())]
    if several:
        return " or ".join(dict.fromkeys(words(one) for one in several))
    if schema.get("type") == "array":
        return f"list of {words(schema['items'])}" if schema.get("items") else "list"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"object of {words(schema['additionalProperties'])}"
    formats = {"date-time": "time", "binary": "file"}
    return formats.get(schema.get("format", ""), str(schema.get("type", "any")))
