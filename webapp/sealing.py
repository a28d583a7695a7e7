"""Secrets at rest: sealed with a key that is derived from the application's secret key.

A copy of the database tells nothing without that key, which lies in a file of its own or comes from the
environment. Sealing is Fernet's (AES-128-CBC with HMAC-SHA256), under a key that HKDF-SHA256 derives for
this use alone. To rotate: set the new STILLROOM_SECRET_KEY, name the old one in
STILLROOM_OLD_SECRET_KEYS, run `python manage.py reseal`, then drop the old one.
"""

from __future__ import annotations

import base64
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

from opdcore.contract.errors import BadInput

PURPOSE = b"stillroom sealed secrets, version 1"
# Of a secret shorter than this, its last four characters would tell too much.
LEAST_SHOWN_LENGTH = 16


def seal(secret: str) -> str:
    """The secret as it may be stored; never twice the same."""
    return _keys().encrypt(secret.encode()).decode("ascii")


def unseal(sealed: str) -> str:
    """The secret; raises BadInput where it was sealed with a key that is not known any more."""
    try:
        return _keys().decrypt(sealed.encode("ascii")).decode()
    except InvalidToken as error:
        raise BadInput(
            "secret.unreadable",
            "A stored secret was sealed with another secret key.",
            remedy="Name the former key in STILLROOM_OLD_SECRET_KEYS, or set the secret again.",
        ) from error


def resealed(sealed: str) -> str:
    """The same secret under the newest key; raises as `unseal` does."""
    return seal(unseal(sealed))


def last_four(secret: str) -> str:
    """What may be shown of it; empty where it is short."""
    return secret[-4:] if len(secret) >= LEAST_SHOWN_LENGTH else ""


def _keys() -> MultiFernet:
    keys = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return MultiFernet([_fernet(key) for key in keys])


@lru_cache(maxsize=8)
def _fernet(secret_key: str) -> Fernet:
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=PURPOSE)
    return Fernet(base64.urlsafe_b64encode(derived.derive(secret_key.encode())))
