"""Files are whole or absent, and our safetensors files are those of the library."""

import hashlib

import pytest
import torch
from safetensors.torch import load_file

from opdcore.files import intact, whole_folder, write_bytes, write_manifest, write_tensors

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "c": torch.tensor(7.0),
    "d": torch.arange(8).reshape(2, 4).T,
    "e": torch.tensor([True, False]),
}


def test_our_safetensors_open_with_the_library_and_the_hash_is_the_files(tmp_path):
    written = write_tensors(tmp_path / "x.safetensors", TENSORS)
    content = (tmp_path / "x.safetensors").read_bytes()
    assert written == (hashlib.sha256(content).hexdigest(), len(content))
    loaded = load_file(tmp_path / "x.safetensors")
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    target = tmp_path / "folder"

    def fail_midway():
        with whole_folder(target) as aside:
            write_bytes(aside / "one", b"1")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_midway()
    assert list(tmp_path.iterdir()) == []
    with whole_folder(target) as aside:
        write_manifest(aside, {"one": write_bytes(aside / "one", b"1")})
    assert intact(target)


@pytest.mark.parametrize("damage", [b"", b"2", b"11"])
def test_a_changed_or_torn_file_is_noticed(tmp_path, damage):
    with whole_folder(tmp_path / "folder") as aside:
        write_manifest(aside, {"one": write_bytes(aside / "one", b"1")})
    (tmp_path / "folder" / "one").write_bytes(damage)
    assert not intact(tmp_path / "folder")


def test_a_folder_without_a_manifest_is_not_intact(tmp_path):
    assert not intact(tmp_path)
