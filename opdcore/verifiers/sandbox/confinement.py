"""Takes from this process what a response must not have: files, network, processes, privileges.

Seccomp and Landlock need no privilege, so a plain user, root and root in a container are confined
alike, and neither is replaced by anything weaker where a kernel lacks it: `confine` raises OSError.
It knows no response and no tests.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sysconfig
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache

from opdcore.verifiers.sandbox import landlock, seccomp
from opdcore.verifiers.sandbox.seccomp import call, libc

OPEN_FILES = 64
FILE_BYTES = 16 << 20
FOLDER_FILES = 64
THREADS = 32
_LIBRARY = frozenset({sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")})
_PR_SET_PDEATHSIG = 1
_CAPABILITIES_VERSION = 0x20080522


@dataclass(frozen=True)
class Limits:
    """What one attempt may use: wall and processor time, and address space."""

    seconds: float
    memory_bytes: int


def prepare() -> None:
    """Works out, before the forks, what every confined process needs."""
    _library()
    with suppress(OSError):  # It is told where a process cannot be confined.
        seccomp.filter_program(os.getpid())


def confine(folder: str, *, limits: Limits, keep: Collection[int], parent: int) -> None:
    """Confines this process, single-threaded as yet, to `folder` and the standard library.

    `keep` are the descriptors that stay open beside 0, 1 and 2, which become the null device.
    """
    _close_all_but(keep)
    os.setsid()
    os.umask(0o077)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _limit(limits)
    _drop_capabilities()
    # Asked after the capabilities went, since their going would forget it.
    call(libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)
    seccomp.give_up_privileges()
    landlock.restrict(_granted(folder))
    seccomp.restrict()


def _granted(folder: str) -> dict[str, int]:
    reading = landlock.READ_FILE | landlock.READ_DIR
    writing = landlock.WRITE_FILE | landlock.TRUNCATE
    return _library() | {
        # No folders in the folder: its size can be seen at a glance, and it can be removed.
        folder: reading | writing | landlock.MAKE_REG | landlock.REMOVE_FILE,
        os.devnull: landlock.READ_FILE | landlock.WRITE_FILE,
    }


@cache
def _library() -> dict[str, int]:
    """The standard library, entry by entry, since other packages may be installed within its folder."""
    rights = dict.fromkeys(_LIBRARY, landlock.READ_DIR)
    for entry in (entry for folder in _LIBRARY for entry in os.scandir(folder)):
        if entry.name not in ("site-packages", "dist-packages"):
            folder_too = landlock.READ_DIR if entry.is_dir() else 0
            rights[entry.path] = landlock.READ_FILE | folder_too
    return rights


def _close_all_but(keep: Collection[int]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    lowest = 3
    for descriptor in sorted(keep):
        os.closerange(lowest, descriptor)
        lowest = descriptor + 1
    os.closerange(lowest, 1 << 16)


def _limit(limits: Limits) -> None:
    seconds = max(1, round(limits.seconds + 0.5))
    asked = {
        # The second of the two ends a process that ignores the first.
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_AS: (limits.memory_bytes, limits.memory_bytes),
        resource.RLIMIT_FSIZE: (FILE_BYTES, FILE_BYTES),
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }
    for kind, (soft, hard) in asked.items():
        _, inherited = resource.getrlimit(kind)
        highest = hard if inherited == resource.RLIM_INFINITY else min(hard, inherited)
        resource.setrlimit(kind, (min(soft, highest), highest))


def _drop_capabilities() -> None:
    """Root keeps its number and loses its powers; for a plain user nothing changes."""
    header = struct.pack("=Ii", _CAPABILITIES_VERSION, 0)
    call(libc.capset(ctypes.c_char_p(header), ctypes.c_char_p(bytes(24))))
