"""The disk of a run's folder, and that a run's row keeps the most of it."""

import pytest

from tests.workers.rows import make_running
from webapp.services import recording
from workers.footprint import Footprint, size_of


def test_a_footprint_tells_only_what_is_larger_than_ever(tmp_path):
    footprint = Footprint(tmp_path, every_seconds=0)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "weights").write_bytes(b"x" * 300)
    (tmp_path / "log").write_bytes(b"x" * 20)
    assert footprint.grown() == 320
    assert footprint.grown() is None
    (tmp_path / "a" / "weights").unlink()
    assert footprint.grown() is None
    assert (footprint.most_bytes, size_of(tmp_path)) == (320, 20)


def test_a_look_shortly_after_another_is_left_out_unless_it_is_the_last(tmp_path):
    footprint = Footprint(tmp_path, every_seconds=60)
    assert footprint.grown() is None
    (tmp_path / "log").write_bytes(b"x")
    assert footprint.grown() is None
    assert footprint.grown(at_once=True) == 1


@pytest.mark.django_db
def test_the_row_keeps_the_most_disk_of_the_present_attempt():
    run = make_running()
    assert run.disk_bytes is None
    for size, attempt in ((700, run.attempt), (300, run.attempt), (900, run.attempt + 1)):
        recording.keep_disk(run.pk, attempt, size)
    run.refresh_from_db()
    assert run.disk_bytes == 700
