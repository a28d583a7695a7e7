"""Safetensors files read by hand: names, shapes and types of the tensors, and whether they are whole.

Only the headers and a few sampled blocks are read, so a 15 GB checkpoint takes milliseconds. It
knows no torch and no architecture: what a tensor is for is `inspection`'s business.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opdcore.contract.errors import BadInput
from opdcore.json_files import read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

_LENGTH_BYTES = 8
_LARGEST_HEADER = 100_000_000  # bytes, the format's own limit
_SAMPLED_BLOCKS = 64
_BLOCK_BYTES = 4096
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

_COPY_AGAIN = "Copy or download the file again."


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as its file's header declares it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.elements * _BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a folder, by name, with the files that hold them and their size in bytes."""

    files: tuple[Path, ...]
    tensors: Mapping[str, TensorEntry]
    bytes: int


def read_weights(folder: Path) -> Weights:
    """Read and check every safetensors header of a folder; raise BadInput where one is not whole."""
    files, placed = _files_of(folder)
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        header = read_header(file)
        _refuse_missing_tensors(file, placed, header)
        tensors.update(header)
    return Weights(files, tensors, sum(file.stat().st_size for file in files))


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Read one file's header and check that its tensors fill the file exactly."""
    header, data_bytes = _parse_header(file)
    entries: dict[str, TensorEntry] = {}
    spans: list[tuple[int, int]] = []
    for name, declared in header.items():
        if name != "__metadata__":
            entries[name], span = _entry(file, name, declared)
            spans.append(span)
    _refuse_gaps(file, spans, data_bytes)
    return entries


def fingerprint(weights: Weights, *, full: bool = False) -> str:
    """sha256 over names, sizes, headers and 64 sampled blocks of each file; of all bytes if `full`.

    The blocks tell apart two checkpoints of one architecture, whose headers are equal.
    """
    digest = hashlib.sha256()
    for file in weights.files:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with file.open("rb") as stream:
            if full:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
                continue
            header_bytes = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
            digest.update(stream.read(header_bytes))
            start = _LENGTH_BYTES + header_bytes
            for block in range(_SAMPLED_BLOCKS):
                stream.seek(start + (size - start) * block // _SAMPLED_BLOCKS)
                digest.update(stream.read(_BLOCK_BYTES))
    return digest.hexdigest()


def _files_of(folder: Path) -> tuple[tuple[Path, ...], dict[str, set[str]]]:
    """The folder's weight files and, of a sharded checkpoint, the tensors each must hold."""
    if (folder / SINGLE).exists():
        return (folder / SINGLE,), {}
    if (folder / INDEX).exists():
        placed = _read_index(folder / INDEX)
        return tuple(_shard(folder, name) for name in sorted(placed)), placed
    raise _no_weights(folder)


def _read_index(file: Path) -> dict[str, set[str]]:
    weight_map = read_object(file, "model.broken_index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInput(
            "model.broken_index",
            f"{file} has no `weight_map` that names its shards.",
            remedy="Save the model again with `save_pretrained`.",
            field=INDEX,
        )
    placed: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        placed.setdefault(str(shard), set()).add(tensor)
    return placed


def _shard(folder: Path, name: str) -> Path:
    if Path(name).name != name:
        raise BadInput(
            "model.broken_index",
            f"The index names {name!r}, which is not a file of its own folder.",
            remedy="Shards lie beside their index; save the model again with `save_pretrained`.",
            field=INDEX,
        )
    if not (folder / name).is_file():
        raise BadInput(
            "model.missing_shard",
            f"{folder} lacks {name}, which its index names.",
            remedy="Download or copy the missing file.",
            field=name,
        )
    return folder / name


def _no_weights(folder: Path) -> BadInput:
    names = sorted(file.name for file in folder.iterdir() if file.is_file())
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    others = [name for name in names if name.endswith(".safetensors")]
    if pickles:
        return BadInput(
            "model.pickle",
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run any code.",
            remedy="Convert it where you trust it: load the model with transformers and call "
            "`model.save_pretrained(folder, safe_serialization=True)`.",
            field=pickles[0],
        )
    found = f"; it has {', '.join(others[:3])}" if others else ""
    return BadInput(
        "model.no_safetensors",
        f"{folder} has neither {SINGLE} nor {INDEX}{found}.",
        remedy="Save the model there with `model.save_pretrained(folder)`.",
    )


def _parse_header(file: Path) -> tuple[dict[str, object], int]:
    """The header as JSON, and how many bytes of tensors the file holds after it."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(_LENGTH_BYTES)
        if start == b"version ":
            raise _unusable("model.lfs_pointer", file, "is a Git LFS pointer, not weights.")
        if len(start) < _LENGTH_BYTES:
            raise _unusable("model.truncated", file, f"has {size} bytes: not even a header.")
        header_bytes = int.from_bytes(start, "little")
        if header_bytes > _LARGEST_HEADER:
            raise _unusable(
                "model.broken_weights", file, f"declares a header of {header_bytes} bytes."
            )
        if _LENGTH_BYTES + header_bytes > size:
            raise _unusable(
                "model.truncated", file, f"ends at byte {size}, inside its {header_bytes} B header."
            )
        return _header_json(file, stream.read(header_bytes)), size - _LENGTH_BYTES - header_bytes


def _header_json(file: Path, raw: bytes) -> dict[str, object]:
    try:
        header = json.loads(raw)
    except ValueError as error:
        raise _unusable(
            "model.broken_weights", file, f"has an unreadable header: {error}"
        ) from error
    if not isinstance(header, dict):
        raise _unusable("model.broken_weights", file, "has a header that is not an object.")
    return header


def _entry(file: Path, name: str, declared: object) -> tuple[TensorEntry, tuple[int, int]]:
    if not isinstance(declared, dict):
        raise _unusable("model.broken_weights", file, f"declares {name} without type and shape.")
    dtype = declared.get("dtype")
    shape, offsets = _sizes(declared.get("shape")), _sizes(declared.get("data_offsets"))
    if dtype not in _BITS or shape is None or offsets is None or len(offsets) != 2:
        raise _unusable(
            "model.broken_weights", file, f"declares {name} as {declared!r}, which cannot be."
        )
    entry, (start, stop) = TensorEntry(dtype, shape), offsets
    if stop - start != entry.bytes:
        raise _unusable(
            "model.broken_weights",
            file,
            f"gives {name} {stop - start} bytes where {dtype} {list(shape)} takes {entry.bytes}.",
        )
    return entry, (start, stop)


def _sizes(value: object) -> tuple[int, ...] | None:
    """A list of sizes as a tuple; None for anything else."""
    if isinstance(value, list) and all(type(size) is int and size >= 0 for size in value):
        return tuple(value)
    return None


def _refuse_gaps(file: Path, spans: list[tuple[int, int]], data_bytes: int) -> None:
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise _unusable("model.broken_weights", file, f"has a gap or overlap at byte {start}.")
        end = stop
    if end > data_bytes:
        raise _unusable(
            "model.truncated", file, f"is cut short: {end - data_bytes} of {end} bytes are missing."
        )
    if end < data_bytes:
        raise _unusable("model.broken_weights", file, f"has {data_bytes - end} bytes too many.")


def _refuse_missing_tensors(
    file: Path, placed: Mapping[str, set[str]], header: Mapping[str, TensorEntry]
) -> None:
    missing = sorted(placed.get(file.name, set()) - header.keys())
    if missing:
        raise _unusable(
            "model.missing_tensor",
            file,
            f"lacks {missing[0]} ({len(missing)} missing), which the index places there.",
        )


def _unusable(code: str, file: Path, what: str) -> BadInput:
    remedy = "Run `git lfs pull` in the folder." if code == "model.lfs_pointer" else _COPY_AGAIN
    return BadInput(code, f"{file} {what}", remedy=remedy, field=file.name)
