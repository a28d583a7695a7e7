"""Token maps are compared by meaning: widths may differ, meanings may not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from opdcore.contract.errors import BadInput
from opdcore.token_maps import TokenMapReport, compare
from tests.opdcore.model_folders import SHAPES, edit_json, make_folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: make_folder(root / kind, kind) for kind in SHAPES}


def codes(report: TokenMapReport) -> set[str]:
    return {warning.code for warning in report.warnings}


def rename_token(folder: Path, token_id: int, token: str) -> None:
    """Give one id of the vocabulary (no added token) another token."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = content["model"]["vocab"]
    old = next(text for text, one in vocabulary.items() if one == token_id)
    merges = content["model"]["merges"]
    content["model"]["merges"] = [merge for merge in merges if "".join(merge) != old]
    vocabulary[token] = vocabulary.pop(old)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def copy(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


def test_a_model_and_itself_are_the_same(folders: dict[str, Path]) -> None:
    report = compare(folders["qwen3"], folders["qwen3"])
    assert report.verdict == "same"
    assert report.code is None
    assert report.warnings == ()
    assert report.shared_vocabulary == 600
    report.refuse_if_different()


def test_widths_may_differ(folders: dict[str, Path], tmp_path: Path) -> None:
    wide = make_folder(tmp_path / "wide", "qwen3", width_multiple=1024)
    report = compare(folders["qwen3"], wide)
    assert (report.student_width, report.teacher_width) == (768, 1024)
    assert (report.verdict, report.shared_vocabulary) == ("same", 600)


def test_every_architecture_pairs_with_every_other(folders: dict[str, Path]) -> None:
    for student in folders.values():
        for teacher in folders.values():
            report = compare(student, teacher)
            assert report.verdict in ("same", "warning")
            assert report.shared_vocabulary == 600


def test_special_ids_and_templates_that_differ_are_warnings(folders: dict[str, Path]) -> None:
    report = compare(folders["qwen2"], folders["llama"])
    assert report.verdict == "warning"
    assert codes(report) == {
        "pair.eos_differ", "pair.bos_differ", "pair.templates_differ", "pair.eos_undecided",
    }  # fmt: skip
    assert "590 ('<|im_end|>')" in report.summary


def test_tokenizer_that_disagrees_with_its_config_about_eos_is_a_warning(
    folders: dict[str, Path],
) -> None:
    report = compare(folders["qwen2"], folders["qwen2"])
    assert codes(report) == {"pair.eos_undecided"}
    assert report.warnings[0].consequence == "Each of 588, 590 ends a response."


def test_template_on_one_side_only_is_a_warning(folders: dict[str, Path]) -> None:
    report = compare(folders["gpt_neox"], folders["qwen3"])
    assert "Only the teacher has a chat template." in report.summary


def test_model_without_eos_is_a_warning(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copy(folders["gpt_neox"], tmp_path / "model")
    edit_json(folder / "config.json", eos_token_id=None)
    edit_json(folder / "tokenizer_config.json", eos_token=None)
    assert "pair.no_eos" in codes(compare(folder, folders["gpt_neox"]))


def test_other_vocabulary_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    other = make_folder(tmp_path / "other", "qwen3", vocabulary=500)
    report = compare(folders["qwen3"], other)
    assert (report.verdict, report.code) == ("different", "pair.token_maps_differ")
    assert report.shared_vocabulary == 488
    assert report.differing_count == 12
    assert report.differing[0].teacher == "<|endoftext|>"
    assert report.one_sided_count == 100
    assert len(report.one_sided) == 20
    with pytest.raises(BadInput) as caught:
        report.refuse_if_different()
    assert caught.value.info.code == "pair.token_maps_differ"


def test_one_renamed_token_is_refused_and_named(folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = copy(folders["qwen3"], tmp_path / "teacher")
    rename_token(teacher, 587, "zzz")
    report = compare(folders["qwen3"], teacher)
    assert report.verdict == "different"
    assert [pair.id for pair in report.differing] == [587]
    assert report.differing[0].teacher == "zzz"
    assert report.shared_vocabulary == 587
    assert "id 587" in report.summary


def test_added_tokens_of_one_side_cut_the_logits(folders: dict[str, Path], tmp_path: Path) -> None:
    teacher = make_folder(tmp_path / "teacher", "qwen3", extra_tokens=("<tool>", "</tool>"))
    for student, other in ((folders["qwen3"], teacher), (teacher, folders["qwen3"])):
        report = compare(student, other)
        assert report.verdict == "warning"
        assert codes(report) == {"pair.one_sided_tokens"}
        assert report.shared_vocabulary == 600
        assert [pair.id for pair in report.one_sided] == [600, 601]


def test_end_that_the_teacher_lacks_is_a_warning(folders: dict[str, Path], tmp_path: Path) -> None:
    student = make_folder(
        tmp_path / "student", "qwen3", extra_tokens=("<end>",), eos="<end>", config_eos="<end>",
        generation_eos=("<end>",),
    )  # fmt: skip
    report = compare(student, folders["qwen3"])
    assert "pair.stop_beyond_shared" in codes(report)


def test_a_reserved_name_put_to_use_does_not_cut_what_follows(tmp_path: Path) -> None:
    reserved = ("<|reserved_special_token_0|>", "<|eom|>")
    student = make_folder(tmp_path / "student", "qwen3", extra_tokens=reserved)
    teacher = make_folder(tmp_path / "teacher", "qwen3", extra_tokens=("<|tool|>", "<|eom|>"))
    report = compare(student, teacher)
    assert report.verdict == "warning"
    assert report.differing_count == 0
    assert [pair.id for pair in report.one_sided] == [600]
    assert report.shared_vocabulary == 602


def test_two_tokens_on_one_id_in_a_file_compare_equal_to_themselves(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = copy(folders["qwen3"], tmp_path / "model")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["vocab"] |= {"zza": 300, "zzb": 300, "zzc": 300}
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    assert compare(folder, folder).differing_count == 0


def test_two_named_tokens_of_one_id_are_refused(tmp_path: Path) -> None:
    student = make_folder(tmp_path / "student", "qwen3", extra_tokens=("<|box|>",))
    teacher = make_folder(tmp_path / "teacher", "qwen3", extra_tokens=("<|tool|>",))
    assert compare(student, teacher).verdict == "different"


def test_same_tokens_split_otherwise_are_a_warning(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    teacher = copy(folders["qwen3"], tmp_path / "teacher")
    content = json.loads((teacher / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"] = content["model"]["merges"][:100]
    (teacher / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    report = compare(folders["qwen3"], teacher)
    assert codes(report) == {"pair.encodings_differ"}
    assert report.shared_vocabulary == 600


def test_broken_folder_is_named_before_any_comparison(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    teacher = copy(folders["qwen3"], tmp_path / "teacher")
    (teacher / "tokenizer.json").unlink()
    with pytest.raises(BadInput, match="teacher") as caught:
        compare(folders["qwen3"], teacher)
    assert caught.value.info.code == "model.no_tokenizer"
