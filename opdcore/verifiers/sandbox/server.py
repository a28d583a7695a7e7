"""The program of the sandbox: a request a line on stdin, a reply a line on stdout.

Each request is examined in a process of its own, which is forked here, confined before it sees the
response, watched, and ended. It is believed only where it repeats a number that lay in a pipe which the
examination reads after the last test: how the process exits, what it prints and what else it writes
count for nothing. This process never runs a response's code.

Not defended against: a response written against this very program, which finds the pipes by trying
descriptors or by walking frames and then reports a pass itself; it is in the process that runs the
tests. And a response learns the names and sizes of files, though never their contents.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import secrets
import select
import signal
import sys
import tempfile
import time
from os import _exit as leave
from os import read as read_descriptor
from os import write as write_descriptor
from typing import NoReturn, TextIO

from opdcore.verifiers.sandbox import confinement, examination
from opdcore.verifiers.sandbox.confinement import Limits
from opdcore.verifiers.sandbox.examination import Finding

UNCONFINED = "the sandbox could not be set up"
UNFINISHED = "the code ended its process before the tests were done"
LOOK_SECONDS = 0.05
LONGEST_REPORT_BYTES = 512
_MARKS = {b"+": True, b"-": False, b"?": None}

# What answers use most, imported once before the forks; the rest of the library is read when asked for.
PRELOADED = (
    "abc", "array", "ast", "asyncio", "bisect", "calendar", "cmath", "collections.abc", "contextlib",
    "copy", "csv", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib",
    "heapq", "inspect", "io", "itertools", "json", "logging", "math", "numbers", "operator", "pathlib",
    "queue", "random", "re", "statistics", "string", "struct", "textwrap", "threading", "time",
    "traceback", "types", "typing", "unicodedata", "unittest", "uuid", "warnings", "zlib",
)  # fmt: skip

Reply = dict[str, bool | str | None]


def main(arguments: list[str]) -> int:
    """Serves until stdin closes; the first argument is the limits as JSON, the second a folder."""
    replies = _claim_stdout()
    limits, scratch = Limits(**json.loads(arguments[0])), arguments[1]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides when Ctrl-C ends a grading.
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # A Python built without some library.
            importlib.import_module(name)
    confinement.prepare()
    gc.freeze()  # A collection in a forked process then leaves the shared pages alone.
    _write(replies, {"ready": True})
    try:
        while line := sys.stdin.buffer.readline():
            request = json.loads(line)
            _write(replies, _graded(attempt(request["code"], request["tests"], limits, scratch)))
    finally:
        with contextlib.suppress(OSError):  # The last of a pool whose parent is gone removes it.
            os.rmdir(scratch)  # noqa: PTH106 - as `_remove`
    return 0


def attempt(code: str, tests: list[str], limits: Limits, scratch: str) -> Finding:
    """Examines one response in a confined process of its own, and leaves nothing of it behind."""
    folder = tempfile.mkdtemp(dir=scratch)
    nonce = secrets.token_hex(16).encode()
    asking, asked = os.pipe()
    telling, told = os.pipe()
    os.write(asked, nonce)
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        _be_examined(code, tests, limits, folder, pipes=(asking, told), parent=server)
    for ours in (asking, asked, told):
        os.close(ours)
    try:
        cut = _watch(pid, folder, limits)
    finally:
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        said = os.read(telling, LONGEST_REPORT_BYTES)
        os.close(telling)
        _remove(folder)
    return Finding(False, cut) if cut else _believed(said, nonce, status)


def _be_examined(
    code: str, tests: list[str], limits: Limits, folder: str, *, pipes: tuple[int, int], parent: int
) -> NoReturn:
    """The confined process: never returns, whatever happens in it."""
    asking, told = pipes
    try:
        confinement.confine(folder, limits=limits, keep=pipes, parent=parent)
    except OSError as error:
        found = Finding(None, f"{UNCONFINED} ({error})")
    else:
        found = examination.examine(code, tests)
    # A fault of the examination itself ends the process here, and is then no pass.
    mark = b"+" if found.passed else b"?" if found.passed is None else b"-"
    reason = (found.reason or "").encode()[: LONGEST_REPORT_BYTES - 64]
    write_descriptor(told, read_descriptor(asking, 64) + mark + reason)
    leave(0)


def _watch(pid: int, folder: str, limits: Limits) -> str | None:
    """Waits for the process to end; why it must be ended before that, None where it did by itself."""
    deadline = time.monotonic() + limits.seconds
    process = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(process, select.POLLIN)
        poller.register(0, select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            ready = [descriptor for descriptor, _ in poller.poll(1000 * min(left, LOOK_SECONDS))]
            if 0 in ready:  # No request comes before the reply to the last: the parent is gone.
                raise SystemExit(1)
            if ready:
                return None
            if (excess := _excess(pid, folder)) is not None:
                return excess
    finally:
        os.close(process)
    return f"the code ran longer than {limits.seconds:g} seconds"


def _excess(pid: int, folder: str) -> str | None:
    """What no limit of the kernel covers without privilege: threads, and many files."""
    with open(f"/proc/{pid}/stat", "rb") as status:  # noqa: PTH123 - as `_remove`
        # The twentieth field; the second, a name in brackets, may hold blanks.
        if int(status.read().rpartition(b")")[2].split()[17]) > confinement.THREADS:
            return f"the code ran more than {confinement.THREADS} threads"
    with os.scandir(folder) as entries:
        files = list(entries)
    if len(files) > confinement.FOLDER_FILES:
        return f"the code wrote more than {confinement.FOLDER_FILES} files"
    return None


def _believed(said: bytes, nonce: bytes, status: int) -> Finding:
    """What the process reported, if it was the examination that did, after the last test."""
    mark = said[len(nonce) : len(nonce) + 1]
    if said.startswith(nonce) and mark in _MARKS and os.WIFEXITED(status):
        reason = said[len(nonce) + 1 :].decode(errors="replace")
        return Finding(_MARKS[mark], reason or None)
    if not os.WIFSIGNALED(status):
        return Finding(False, UNFINISHED)
    number = os.WTERMSIG(status)
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return Finding(False, "the code used up its processor time or its memory")
    return Finding(False, f"the code's process died of {signal.Signals(number).name}")


def _remove(folder: str) -> None:
    """Removes the folder, which holds no folders."""
    for name in os.listdir(folder):  # noqa: PTH208 - descriptors' own module, as all here
        os.unlink(os.path.join(folder, name))  # noqa: PTH108, PTH118
    os.rmdir(folder)  # noqa: PTH106


def _graded(found: Finding) -> Reply:
    return {"correct": found.passed, "reason": found.reason}


def _claim_stdout() -> TextIO:
    """Keep the pipe for replies; whatever a library prints goes to stderr."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(pipe, "w", encoding="utf-8")


def _write(replies: TextIO, reply: Reply) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()
