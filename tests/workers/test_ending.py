"""How an attempt ended: what the job said comes first, then who stopped it, then how it died."""

import pytest

from opdcore.contract.errors import ErrorInfo
from opdcore.contract.events import JobFinished
from workers.ending import Death, judge

ERROR = ErrorInfo(code="model.pickle", message="It is a pickle.", remedy="Convert it.")


def death(code=0, *, log_tail="", cancelled=False, interrupted=False, memory=False):
    return Death(code, log_tail, cancelled, interrupted, memory)


@pytest.mark.parametrize(
    ("said", "died", "status", "code"),
    [
        (JobFinished(status="succeeded"), death(cancelled=True), "succeeded", None),
        (JobFinished(status="succeeded"), death(interrupted=True), "succeeded", None),
        (JobFinished(status="failed", error=ERROR), death(1), "failed", "model.pickle"),
        (
            JobFinished(status="failed", error=ERROR),
            death(1, cancelled=True),
            "failed",
            "model.pickle",
        ),
        (JobFinished(status="cancelled"), death(5, cancelled=True), "cancelled", None),
        (JobFinished(status="cancelled"), death(5, interrupted=True), "queued", None),
        (JobFinished(status="cancelled"), death(5), "cancelled", None),
        (JobFinished(status="paused", error=ERROR), death(6), "paused", "model.pickle"),
        (JobFinished(status="paused"), death(6, cancelled=True), "cancelled", None),
        (JobFinished(status="paused"), death(6, interrupted=True), "paused", None),
        (None, death(-9, cancelled=True), "cancelled", None),
        (None, death(-9, interrupted=True), "queued", None),
        (None, death(-9), "failed", "job.killed"),
        (None, death(-9, memory=True), "failed", "job.out_of_memory"),
        (None, death(1, log_tail="x\nMemoryError\n"), "failed", "job.out_of_memory"),
        (None, death(1, log_tail="x\nKeyError: 3\n"), "failed", "job.crashed"),
        (None, death(0), "failed", "job.crashed"),
    ],
)
def test_an_ending_follows_from_word_wish_and_death(said, died, status, code):
    ended = judge(said, died)
    assert ended.status == status
    assert (ended.error.code if ended.error else None) == code


def test_a_crash_tells_the_last_line_of_the_log():
    assert "KeyError: 3" in judge(None, death(1, log_tail="x\nKeyError: 3\n")).error.message
