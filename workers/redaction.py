"""Secrets taken out of what a job says: lines of events, and its log. It knows no job and no row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


class Redaction:
    """Replaces each secret by the name of its variable; longer ones first, for one may hold another."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        longest_first = sorted(secrets.items(), key=lambda item: -len(item[1]))
        self._known = [
            (said.encode(), f"[{name}]".encode())
            for name, secret in longest_first
            for said in dict.fromkeys((secret, json.dumps(secret)[1:-1]))
            if said
        ]

    def clean(self, said: bytes) -> bytes:
        """The same without secrets."""
        for secret, name in self._known:
            if secret in said:
                said = said.replace(secret, name)
        return said

    def clean_file(self, path: Path) -> None:
        """Takes the secrets out of a text file, line by line; one without any stays untouched."""
        if not self._known or not path.exists() or not self._occurs(path):
            return
        aside = path.with_suffix(".part")
        with path.open("rb") as said, aside.open("wb") as cleaned:
            cleaned.writelines(self.clean(line) for line in said)
        aside.rename(path)

    def _occurs(self, path: Path) -> bool:
        with path.open("rb") as said:
            return any(self.clean(line) != line for line in said)


NO_SECRETS = Redaction({})
