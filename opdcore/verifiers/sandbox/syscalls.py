"""Which system calls a confined process may make, by their numbers on x86-64 and on 64-bit Arm.

The list is of what is allowed: computing, memory, threads of its own process, files that it may open,
pipes, clocks. It has no call that starts a program or another process, opens a socket, mounts, traces,
changes another process, or changes the owner, mode or attributes of a file. Calls that are harmless
with some arguments only are conditions. It knows no filter program.
"""

from __future__ import annotations

from dataclasses import dataclass

# AUDIT_ARCH_* of linux/audit.h, and the column of the tables below.
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

# Name, number on x86-64, number on 64-bit Arm; `-` where that machine has no such call.
_ALLOWED = """
read 0 63  readv 19 65  pread64 17 67  preadv 295 69
write 1 64  writev 20 66  pwrite64 18 68  pwritev 296 70
lseek 8 62  close 3 57  close_range 436 436  creat 85 -  ftruncate 77 46
fsync 74 82  fdatasync 75 83  flock 73 32  sendfile 40 71  copy_file_range 326 285
stat 4 -  lstat 6 -  fstat 5 80  newfstatat 262 79  statx 332 291
access 21 -  faccessat 269 48  faccessat2 439 439  readlink 89 -  readlinkat 267 78
getdents64 217 61  getcwd 79 17  chdir 80 49  fchdir 81 50  umask 95 166
unlink 87 -  unlinkat 263 35  rename 82 -  renameat 264 38  renameat2 316 276
dup 32 23  dup2 33 -  dup3 292 24  pipe 22 -  pipe2 293 59  eventfd2 290 19
poll 7 -  ppoll 271 73  select 23 -  pselect6 270 72
epoll_create1 291 20  epoll_ctl 233 21  epoll_wait 232 -  epoll_pwait 281 22  epoll_pwait2 441 441
recvfrom 45 207  shutdown 48 210  getsockname 51 204  getpeername 52 205  getsockopt 55 209

mmap 9 222  munmap 11 215  mprotect 10 226  mremap 25 216  madvise 28 233  brk 12 214  msync 26 227

futex 202 98  set_robust_list 273 99  get_robust_list 274 100  set_tid_address 218 96  rseq 334 293
membarrier 324 283  sched_yield 24 124  sched_getaffinity 204 123  sched_getparam 143 121
sched_getscheduler 145 120  getcpu 309 168  arch_prctl 158 -  restart_syscall 219 128
exit 60 93  exit_group 231 94  wait4 61 260  waitid 247 95

rt_sigaction 13 134  rt_sigprocmask 14 135  rt_sigreturn 15 139  rt_sigpending 127 136
rt_sigsuspend 130 133  rt_sigtimedwait 128 137  sigaltstack 131 132  pause 34 -
setitimer 38 103  getitimer 36 102  alarm 37 -

getpid 39 172  getppid 110 173  gettid 186 178  getuid 102 174  geteuid 107 175  getgid 104 176
getegid 108 177  getgroups 115 158  getresuid 118 148  getresgid 120 150  getpgrp 111 -
getpgid 121 155  getsid 124 156  getpriority 140 141  getrlimit 97 163  getrusage 98 165
times 100 153  uname 63 160  sysinfo 99 179

clock_gettime 228 113  clock_getres 229 114  clock_nanosleep 230 115  nanosleep 35 101
gettimeofday 96 169  time 201 -  getrandom 318 278
"""

_ACCESS_MODE, _O_TRUNC = 0o3, 0o1000
_CLONE_THREAD = 0x00010000
_AF_UNIX = 1
_PR_SET_NAME = 15
# Duplicating, flags and locks; not F_SETOWN, which has the kernel signal whom one names.
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030)
# What Python asks of a file that it opens (TCGETS), the size of a terminal, and blocking or not.
_IOCTL = (0x5401, 0x5413, 0x5421, 0x5450, 0x5451)


@dataclass(frozen=True)
class Condition:
    """A call that is allowed where its argument, masked, is one of the values (low 32 bits)."""

    x86_64: int | None
    aarch64: int | None
    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF

    def number(self, column: int) -> int | None:
        return (self.x86_64, self.aarch64)[column]


def allowed(column: int) -> list[int]:
    """The numbers of calls that are allowed with any argument."""
    words = _ALLOWED.split()
    return [int(number) for number in words[1 + column :: 3] if number != "-"]


def conditions(pid: int) -> list[Condition]:
    """The calls that are allowed with some arguments only, for the process `pid`."""
    # O_RDONLY with O_TRUNC empties a file that may only be read, which older Landlocks let pass.
    opening = (0, 1, 2, 1 | _O_TRUNC, 2 | _O_TRUNC)
    return [
        Condition(2, None, 1, opening, _ACCESS_MODE | _O_TRUNC),  # open
        Condition(257, 56, 2, opening, _ACCESS_MODE | _O_TRUNC),  # openat
        Condition(56, 220, 0, (_CLONE_THREAD,), _CLONE_THREAD),  # clone: threads, no processes
        Condition(62, 129, 0, (pid,)),  # kill: itself
        Condition(234, 131, 0, (pid,)),  # tgkill: threads of its own
        Condition(302, 261, 0, (0, pid)),  # prlimit64: its own limits
        Condition(72, 25, 1, _FCNTL),  # fcntl
        Condition(16, 29, 1, _IOCTL),  # ioctl
        Condition(157, 167, 0, (_PR_SET_NAME,)),  # prctl: the name of a thread
        Condition(53, 199, 0, (_AF_UNIX,)),  # socketpair, which event loops wake themselves by
        Condition(44, 206, 5, (0,)),  # sendto without an address: to the pair's other end
    ]


# clone3 keeps its flags in memory, where no filter sees them; libc goes back to clone on ENOSYS.
CLONE3 = 435
