"""Files that are either whole or absent: written aside, hashed while written, then renamed.

Tensors are written as safetensors by a writer of our own, because the library's writes a file that
would have to be read again to be hashed. It knows no model and no run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch
from torch import Tensor

MANIFEST = "manifest.json"
_DTYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


class Written(NamedTuple):
    """What was written: its hash and size."""

    sha256: str
    size_bytes: int


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, renamed to `target` with a manifest of hashes if all went well."""
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _sync(aside)
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    _sync(target.parent)


def write_manifest(folder: Path, files: Mapping[str, Written]) -> Written:
    """Writes the manifest of a folder: each file's hash and size; returns the manifest's own."""
    rows = {name: written._asdict() for name, written in files.items()}
    return write_bytes(folder / MANIFEST, json.dumps(rows, indent=1).encode())


def intact(folder: Path) -> bool:
    """Whether every file of the folder's manifest is there with its size and hash."""
    try:
        rows = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return False
    return all(_matches(folder / name, row) for name, row in rows.items())


def write_bytes(path: Path, content: bytes) -> Written:
    """Writes a small file, synced to the disk."""
    with path.open("wb") as file:
        file.write(content)
        _flush(file)
    return Written(hashlib.sha256(content).hexdigest(), len(content))


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Writes a safetensors file, hashing as it goes; holds one tensor's copy at a time."""
    header, offset = {}, 0
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        span = [offset, offset + size]
        header[name] = {
            "dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": span
        }  # fmt: skip
        offset += size
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    text += b" " * (-len(text) % 8)
    digest, total = hashlib.sha256(), 0
    with path.open("wb") as file:
        for block in _blocks(text, tensors):
            digest.update(block)
            total += file.write(block)
        _flush(file)
    return Written(digest.hexdigest(), total)


def hash_file(path: Path) -> Written:
    """Hash and size of a file that something else wrote."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            size += len(block)
    return Written(digest.hexdigest(), size)


def _blocks(header: bytes, tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    yield len(header).to_bytes(8, "little") + header
    for tensor in tensors.values():
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        yield memoryview(flat.numpy())


def _matches(path: Path, row: dict[str, str | int]) -> bool:
    if not path.is_file() or path.stat().st_size != row["size_bytes"]:
        return False
    return hash_file(path).sha256 == row["sha256"]


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
