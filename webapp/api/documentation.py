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
        Shape(name, schema.get("description", ""), list(_properties(schema)))
        for name, schema in sorted(schemas.items())
        if "properties" in schema
    ]


def _operation(path: str, method: str, operation: JsonSchema) -> Operation:
    replies = operation["responses"]
    status = min((str(code) for code in replies), default="200")
    return Operation(
        name=operation["operationId"],
        method=method.upper(),
        path=path,
        summary=operation["summary"],
        description=operation.get("description", ""),
        parameters=[_field(one["name"], one["schema"], one["required"])
                    for one in operation.get("parameters", ())],
        body=_named(operation.get("requestBody", {}).get("content", {})),
        reply=_named(replies[_key(replies, status)].get("content", {})) if status < "300" else None,
        status=status,
    )  # fmt: skip


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
    kind = str(schema.get("type", "any"))
    return "time" if schema.get("format") == "date-time" else kind
