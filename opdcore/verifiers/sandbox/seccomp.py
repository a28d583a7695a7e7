"""Confines the system calls of this process with a seccomp filter (Linux 3.17), without privilege.

A call that is not allowed fails with EPERM, as PermissionError in Python. It knows no Python code and
no files.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from functools import cache
from itertools import chain

from opdcore.verifiers.sandbox import syscalls

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_MODE_FILTER = 2
# Classic BPF: load a word of the call's data, and with a constant, jump if equal, return.
_LOAD, _AND, _JUMP, _RETURN = 0x20, 0x54, 0x15, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets in struct seccomp_data: number, architecture, the low word of the first argument.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

libc = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def call(result: int) -> int:
    """A C function's result; raises OSError where it is negative."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def give_up_privileges() -> None:
    """Forbids this process, for ever, to gain privileges by starting a program."""
    call(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def restrict() -> None:
    """Leaves this process the calls of `syscalls`. Raises OSError where the kernel cannot."""
    program = filter_program(os.getpid())
    code = ctypes.create_string_buffer(program, len(program))
    described = _Program(len(program) // 8, ctypes.addressof(code))
    call(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(described), 0, 0))


def filter_program(pid: int) -> bytes:
    """The filter of process `pid` as the kernel reads it: eight bytes an instruction."""
    machine = platform.machine()
    if machine not in syscalls.ARCHITECTURES or struct.calcsize("P") != 8:
        raise OSError(errno.ENOSYS, f"no table of system calls for {machine}")
    _, column = syscalls.ARCHITECTURES[machine]
    denied = _ERRNO | errno.EPERM
    conditions = [_conditional(one, column, denied) for one in syscalls.conditions(pid)]
    return b"".join([*_fixed_part(machine), *chain(*conditions), _op(_RETURN, denied)])


@cache
def _fixed_part(machine: str) -> list[bytes]:
    """What is the same for every process; it leaves the number of the call in hand."""
    architecture, column = syscalls.ARCHITECTURES[machine]
    code = [
        _op(_LOAD, _ARCHITECTURE),
        _op(_JUMP, architecture, yes=1),
        _op(_RETURN, _KILL_PROCESS),
        _op(_LOAD, _NUMBER),
    ]
    for number in syscalls.allowed(column):
        code += [_op(_JUMP, number, no=1), _op(_RETURN, _ALLOW)]
    return [*code, _op(_JUMP, syscalls.CLONE3, no=1), _op(_RETURN, _ERRNO | errno.ENOSYS)]


def _conditional(condition: syscalls.Condition, column: int, denied: int) -> list[bytes]:
    number = condition.number(column)
    if number is None:
        return []
    body = [_op(_LOAD, _ARGUMENTS + 8 * condition.argument), _op(_AND, condition.mask)]
    for value in condition.values:
        body += [_op(_JUMP, value, no=1), _op(_RETURN, _ALLOW)]
    body.append(_op(_RETURN, denied))
    return [_op(_JUMP, number, no=len(body)), *body]


def _op(code: int, value: int, *, yes: int = 0, no: int = 0) -> bytes:
    """One instruction; `yes` and `no` are how many instructions a jump skips."""
    return struct.pack("=HBBI", code, yes, no, value)
