"""The child process of the math verifier: one request a line on stdin, one reply a line on stdout.

It knows no pool and no attempt: only text, math-verify and its own limits. Before each request it
arms a kernel alarm whose default action ends the process, so that even one long integer power,
which no Python signal handler can interrupt, cannot outlive its limit when the parent is gone.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TextIO

MEMORY_BYTES = 2 << 30
PARENT_MARGIN_SECONDS = 2.0  # The parent's limit comes first; the alarm is for orphans.
UNREADABLE_REFERENCE = "the reference answer could not be read as mathematics"
NO_ANSWER = "the response states no answer that reads as mathematics"

Reply = dict[str, bool | str | None]


def main(limit_seconds: float) -> int:
    """Serve until stdin closes."""
    replies = _claim_stdout()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The parent decides when Ctrl-C ends a grading.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    logging.disable(logging.CRITICAL)  # math-verify warns of each limit that is left to us.
    judge = _judge()
    _write(replies, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, limit_seconds + PARENT_MARGIN_SECONDS)
        reply = judge(request["response"], request["answer"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _write(replies, reply)
    return 0


def _claim_stdout() -> TextIO:
    """Keep the pipe for replies; whatever a library prints goes to stderr."""
    pipe = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(pipe, "w", encoding="utf-8")


def _write(replies: TextIO, reply: Reply) -> None:
    replies.write(json.dumps(reply) + "\n")
    replies.flush()


def _judge() -> Callable[[str, str], Reply]:
    from math_verify import parse, verify

    @lru_cache(maxsize=1024)
    def read_reference(answer: str) -> list[Any]:
        return list(parse(_as_latex(answer), parsing_timeout=None))

    def judge(response: str, answer: str) -> Reply:
        reference = read_reference(answer)
        if all(isinstance(reading, str) for reading in reference):
            return {"correct": None, "reason": UNREADABLE_REFERENCE}
        given = parse(response, parsing_timeout=None)
        if not given:
            return {"correct": False, "reason": NO_ANSWER}
        if verify(reference, given, timeout_seconds=None):
            return {"correct": True, "reason": None}
        return {"correct": False, "reason": f"the answer is {str(given[-1])[:80]}"}

    return judge


def _as_latex(answer: str) -> str:
    r"""A bare reference such as `\frac{1}{2}` or `x^2` in the delimiters that math-verify needs."""
    answer = answer.rpartition("####")[2].strip()
    marked = "$" in answer.replace(r"\$", "") or r"\boxed" in answer or r"\(" in answer
    return answer if marked or not answer else f"${answer}$"


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1])))
