"""The record of scores on disk: given back as told, torn or damaged, written by several at once, full."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opdcore.contract.scores import bytes_a_token
from opdcore.score_record import ScoreRecord
from opdcore.serving.requests import Known

PLENTY = 1 << 30


def known(rows, width, seed=0):
    rng = np.random.default_rng(seed)
    return Known(
        rng.integers(0, 2**31, (rows, width)), rng.normal(size=(rows, width)).astype(np.float32)
    )


def key_of(number):
    return number.to_bytes(16, "little")


def never(_places):
    raise AssertionError("It is in the record.")


@settings(max_examples=30, deadline=None)
@given(
    shapes=st.lists(st.tuples(st.integers(0, 40), st.integers(2, 20)), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
def test_a_record_gives_back_what_was_told(tmp_path_factory, shapes, seed):
    folder = tmp_path_factory.mktemp("record")
    told = [known(*shape, seed=seed + i) for i, shape in enumerate(shapes)]
    keys = [key_of(i) for i in range(len(told))]
    first = ScoreRecord(folder, room=PLENTY)
    first.recall(keys, lambda places: [told[i] for i in places])
    for record in (first, ScoreRecord(folder)):
        for one, again in zip(told, record.recall(keys, never), strict=True):
            np.testing.assert_array_equal(again.ids, one.ids)
            np.testing.assert_array_equal(again.logprobs, one.logprobs)
            assert (again.ids.dtype, again.logprobs.dtype) == (np.int64, np.float32)
    assert first.positions == sum(rows for rows, _ in shapes)


def test_a_token_takes_what_the_estimate_says(tmp_path):
    record = ScoreRecord(tmp_path, room=PLENTY)
    record.recall([key_of(0)], lambda _: [known(1000, 17)])
    (file,) = tmp_path.glob("*.scores")
    assert file.stat().st_size == record.size_bytes == 1000 * bytes_a_token(16) + 36


@pytest.mark.parametrize("cut", [1, 20, 50, 500])
def test_an_end_that_was_cut_off_is_passed_over(tmp_path, cut):
    first = ScoreRecord(tmp_path, room=PLENTY)
    first.recall([key_of(0), key_of(1)], lambda _: [known(10, 5), known(12, 5, seed=1)])
    (file,) = tmp_path.glob("*.scores")
    file.write_bytes(file.read_bytes()[:-cut])
    again = ScoreRecord(tmp_path, room=PLENTY)
    assert again.missing([key_of(0), key_of(1)]) == [1]
    assert "is torn after" in again.notices()[0]
    again.recall([key_of(0), key_of(1)], lambda places: [known(12, 5, seed=1) for _ in places])
    whole = ScoreRecord(tmp_path).recall([key_of(0), key_of(1)], never)
    np.testing.assert_array_equal(whole[1].ids, known(12, 5, seed=1).ids)


def test_a_damaged_entry_is_asked_anew_and_its_second_value_stands(tmp_path):
    first = ScoreRecord(tmp_path, room=PLENTY)
    first.recall([key_of(0), key_of(1)], lambda _: [known(10, 5), known(12, 5, seed=1)])
    (file,) = tmp_path.glob("*.scores")
    content = bytearray(file.read_bytes())
    content[60] ^= 255
    file.write_bytes(bytes(content))
    for _ in range(3):
        record = ScoreRecord(tmp_path, room=PLENTY)
        told = record.recall([key_of(0), key_of(1)], lambda places: [known(10, 5)] * len(places))
        np.testing.assert_array_equal(told[0].ids, known(10, 5).ids)
        np.testing.assert_array_equal(told[1].ids, known(12, 5, seed=1).ids)
    assert record.counts.asked == 0


def test_who_comes_second_takes_the_firsts_value(tmp_path):
    one, other = ScoreRecord(tmp_path, room=PLENTY), ScoreRecord(tmp_path, room=PLENTY)

    def beaten(_places):
        one.recall([key_of(0)], lambda _: [known(10, 5)])
        return [known(10, 5, seed=9)]

    (told,) = other.recall([key_of(0)], beaten)
    np.testing.assert_array_equal(told.ids, known(10, 5).ids)
    assert len(list(tmp_path.glob("*.scores"))) == 1


def write_many(folder, number):
    record = ScoreRecord(Path(folder), room=PLENTY)
    for key in range(60):
        record.recall([key_of(key)], lambda _: [known(8, 5, seed=1000 * number)])


def test_writers_at_once_agree_on_every_value(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_many, args=(str(tmp_path), n)) for n in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    record = ScoreRecord(tmp_path)
    assert len(record) == 60
    assert record.notices() == []
    total = sum(file.stat().st_size for file in tmp_path.glob("*.scores"))
    assert total == record.size_bytes


def test_no_more_is_kept_than_there_is_room_for(tmp_path):
    record = ScoreRecord(tmp_path, room=1000, run="r")
    for key in range(4):
        record.recall([key_of(key)], lambda _: [known(10, 5)])
    assert len(record) == 2
    assert record.size_bytes <= 1000
    assert (record.counts.left_out, record.is_whole) == (20, False)
    assert ScoreRecord(tmp_path, run="r").is_whole is False
    assert ScoreRecord(tmp_path, run="another").is_whole is True
