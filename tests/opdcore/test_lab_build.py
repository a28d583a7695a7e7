import shutil
import subprocess

import pytest

from opdcore.contract.errors import BadInput
from opdcore.lab.build import build
from opdcore.lab.record import MODEL_NAMES, RECORD_FILE, accuracy_of, hashes, read, shipped
from opdcore.lab.tasks import FAMILIES


def test_a_whole_folder_is_reused_at_once(tmp_path):
    folder = tmp_path / "lab"
    shutil.copytree(shipped("sums"), folder)
    before = (folder / RECORD_FILE).stat().st_mtime_ns
    assert [each.what for each in build(folder, family="sums", seed=0)] == ["ready"]
    assert (folder / RECORD_FILE).stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["seed", "version", "file"])
def test_a_folder_that_does_not_fit_is_built_anew(tmp_path, damage):
    folder = tmp_path / "lab"
    shutil.copytree(shipped("sums"), folder)
    if damage == "version":
        text = (folder / RECORD_FILE).read_text().replace('"lab_version": "', '"lab_version": "0.')
        (folder / RECORD_FILE).write_text(text)
    if damage == "file":
        (folder / "train.jsonl").write_text("")
    building = build(folder, family="sums", seed=1 if damage == "seed" else 0)
    assert next(building).what == "training base"
    building.close()


def test_an_abandoned_build_leaves_nothing_behind(tmp_path):
    building = build(tmp_path / "lab", family="cups", seed=0)
    next(building)
    building.close()
    assert list(tmp_path.iterdir()) == []


def test_a_build_sweeps_up_after_one_that_was_killed(tmp_path):
    finished = subprocess.Popen(["true"])
    finished.wait()
    left = tmp_path / f".lab.building-{finished.pid}"
    left.mkdir()
    building = build(tmp_path / "lab", family="sums", seed=0)
    next(building)
    building.close()
    assert not left.exists()


def test_an_abandoned_build_leaves_the_old_folder_as_it_was(tmp_path):
    folder = tmp_path / "lab"
    shutil.copytree(shipped("sums"), folder)
    building = build(folder, family="sums", seed=1)
    next(building)
    building.close()
    assert hashes(folder) == read(folder).files


def test_a_folder_of_something_else_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(BadInput, match="is no laboratory") as caught:
        next(build(tmp_path, family="sums", seed=0))
    assert caught.value.info.code == "lab.folder_taken"
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(BadInput, match=r"'cards'.*sums, cups"):
        next(build(tmp_path / "lab", family="cards", seed=0))


def test_wilson_intervals_stay_within_bounds():
    sure = accuracy_of([True] * 100)
    assert (sure.value, sure.n) == (1.0, 100)
    assert sure.high == pytest.approx(1.0)
    assert sure.low == pytest.approx(0.963, abs=0.001)
    assert accuracy_of([True, False]).low == pytest.approx(0.0945, abs=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_building_seed_0_again_gives_models_like_the_shipped_ones(tmp_path, family):
    for progress in build(tmp_path / "lab", family=family, seed=0):
        last = progress
    assert (last.done, last.total) == (100, 100)
    again, first = read(tmp_path / "lab"), read(shipped(family))
    assert again.build_seconds > 0
    for name in MODEL_NAMES:
        one, two = again.models[name].accuracy, first.models[name].accuracy
        assert one.low <= two.high, name
        assert two.low <= one.high, name
