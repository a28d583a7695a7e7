"""Confines the files that this process may open with Landlock (Linux 5.13), without privilege.

It holds for root too. It covers the contents of files and folders, not their names, sizes and times,
and not their modes or owners, which `syscalls` leaves unchangeable. It knows no Python code.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Mapping

from opdcore.verifiers.sandbox.seccomp import call, libc

# The same numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_ASK_VERSION = 1
_PATH_BENEATH = 1

# LANDLOCK_ACCESS_FS_* of linux/landlock.h.
WRITE_FILE, READ_FILE, READ_DIR, REMOVE_FILE, MAKE_REG, TRUNCATE = (
    1 << bit for bit in (1, 2, 3, 5, 8, 14)
)
# All rights that exist in a version, from the first: what is handled and not granted is denied.
_HANDLED = (0, 1 << 13, 1 << 14, 1 << 15, 1 << 15, 1 << 16)


def version() -> int:
    """The kernel's version of Landlock; 0 where it has none, or forbids it here."""
    found: int = libc.syscall(
        ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), _ASK_VERSION
    )
    return max(0, found)


def restrict(granted: Mapping[str, int]) -> None:
    """Leaves this process the granted rights below each path. Raises OSError where it cannot."""
    known = version()
    if known == 0:
        raise OSError(errno.ENOSYS, "the kernel has no Landlock, or forbids it here")
    handled = _HANDLED[min(known, len(_HANDLED) - 1)] - 1
    attributes = struct.pack("=Q", handled)
    ruleset = call(
        libc.syscall(
            ctypes.c_long(_CREATE_RULESET), attributes, ctypes.c_size_t(len(attributes)), 0
        )
    )
    for path, rights in granted.items():
        _grant(ruleset, path, rights & handled)
    call(libc.syscall(ctypes.c_long(_RESTRICT_SELF), ruleset, 0))
    os.close(ruleset)


def _grant(ruleset: int, path: str, rights: int) -> None:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        rule = struct.pack("=Qi", rights, place)
        call(libc.syscall(ctypes.c_long(_ADD_RULE), ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(place)
