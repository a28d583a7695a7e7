"""Endpoints: model servers that an admin registered, asked what they serve, and removed.

A key is sealed and never read back by anybody; only jobs that use the endpoint get it.
"""

from __future__ import annotations

from django.db import IntegrityError, transaction
from django.utils import timezone
from pydantic import ValidationError

from opdcore.contract.errors import BadInput
from opdcore.contract.serving import Endpoint
from webapp import sealing
from webapp.models import ModelEndpoint, Project, User
from webapp.permissions import require
from webapp.services import audit, endpoint_probe

LONGEST_NAME = 80
LONGEST_ADDRESS = 500


@transaction.atomic
def register(
    project: Project, name: str, *, base_url: str, model: str, key: str, actor: User
) -> ModelEndpoint:
    """Registers a server under a name; raises BadInput, or PermissionDenied unless by an admin."""
    require(actor, "administer", project)
    address, key = _address(base_url), key.strip()
    _check(name, address, model, key)
    try:
        with transaction.atomic():
            endpoint = ModelEndpoint.objects.create(
                project=project,
                created_by=actor,
                name=name.strip(),
                base_url=address,
                model=model.strip(),
                sealed_key=sealing.seal(key) if key else "",
                last_four=sealing.last_four(key),
            )
    except IntegrityError as error:
        raise _bad(
            "name", f"There is already an endpoint named {name.strip()!r}.", "Choose another name."
        ) from error
    detail = {"name": endpoint.name, "base_url": address, "model": endpoint.model}
    audit.record(actor, "register_endpoint", project=project, about=endpoint, detail=detail)
    return endpoint


@transaction.atomic
def remove(endpoint: ModelEndpoint, *, actor: User) -> None:
    """Forgets the endpoint with its key."""
    require(actor, "administer", endpoint.project)
    detail = {"name": endpoint.name, "base_url": endpoint.base_url}
    audit.record(actor, "remove_endpoint", project=endpoint.project, about=endpoint, detail=detail)
    endpoint.delete()


def probe(endpoint: ModelEndpoint, *, actor: User) -> ModelEndpoint:
    """Asks the server what it serves, and keeps the answer."""
    require(actor, "launch", endpoint.project)
    found = endpoint_probe.ask(endpoint.base_url, endpoint.model, key_of(endpoint) or None)
    answer = found.document | {"serves_model": endpoint.model in found.models}
    endpoint.probe, endpoint.probed_at = answer, timezone.now()
    endpoint.save(update_fields=["probe", "probed_at"])
    return endpoint


def key_of(endpoint: ModelEndpoint) -> str:
    """The key, unsealed; empty where it has none."""
    return sealing.unseal(endpoint.sealed_key) if endpoint.sealed_key else ""


def _address(base_url: str) -> str:
    """Without the `/v1` that every path of the API begins with."""
    return base_url.strip().rstrip("/").removesuffix("/v1").rstrip("/")


def _check(name: str, address: str, model: str, key: str) -> None:
    if not name.strip() or len(name) > LONGEST_NAME:
        raise _bad(
            "name", "The name is empty or too long.", f"Give up to {LONGEST_NAME} characters."
        )
    try:
        Endpoint(base_url=address, model=model.strip())
    except ValidationError as error:
        if error.errors()[0]["loc"] == ("model",):
            raise _bad(
                "model", "The model's name is empty or too long.", "Give its name there."
            ) from error
        raise _no_address(address) from error
    if len(address) > LONGEST_ADDRESS:
        raise _no_address(address[:LONGEST_ADDRESS])
    if not key.isascii() or not (key.isprintable() or not key):
        raise _bad("key", "The key holds characters that no header can.", "Give printable ASCII.")


def _no_address(address: str) -> BadInput:
    return _bad(
        "base_url",
        f"{address!r} is no address of a server.",
        "Give http:// or https://, a host, and no user, query or fragment.",
    )


def _bad(field: str, message: str, remedy: str) -> BadInput:
    return BadInput(f"endpoint.{field}", message, remedy=remedy, field=field)
