"""What was told of texts, on disk: appended to by several processes at once, and never changed.

A record is a folder with one file a writer. An entry is a head with a key, a shape and two checksums, then
ids as int32 and logprobs as float32; an end that was cut off is passed over, and an entry that does not
match its checksum is as good as none. A key has one value: whoever comes second takes the first's, so that
every run that reads a record sees the same numbers. Nothing is synced: what a power cut takes is asked
anew. It knows no model and no text, only keys.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex

import numpy as np

from opdcore.serving.requests import Known

KEY_BYTES = 16
SUFFIX = ".scores"
_MAGIC = b"SR1\n"
# Magic, key, positions, tokens told of each, checksum of the payload; then a checksum of these.
_HEAD = struct.Struct(f"<4s{KEY_BYTES}sIII")
_CHECK = struct.Struct("<I")
_HEAD_BYTES = _HEAD.size + _CHECK.size

Ask = Callable[[list[int]], list[Known]]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an entry's payload lies."""

    file: Path
    offset: int
    rows: int
    width: int
    checksum: int

    @property
    def size(self) -> int:
        return 8 * self.rows * self.width


@dataclass
class Counts:
    """Positions, by what became of them."""

    found: int = 0
    asked: int = 0
    left_out: int = 0


class ScoreRecord:
    """A record as one process sees it; `room` are the bytes that may still be added, none to only read.

    `run` names the run that adds, so that it is known of each whether something was left out.
    """

    def __init__(self, folder: Path, *, room: int = 0, run: str = "") -> None:
        self.folder, self.counts = folder, Counts()
        self._left_out = folder / f"left-out-{run}"
        self._room, self._told_full = 0, False
        self._places: dict[bytes, _Place] = {}
        # How far each file was read; None where what follows cannot be.
        self._read: dict[Path, int | None] = {}
        self._descriptors: dict[Path, int] = {}
        self._own: Path | None = None
        self._notices: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self._look()
        self._room = room

    def __len__(self) -> int:
        return len(self._places)

    @property
    def size_bytes(self) -> int:
        """Bytes of the entries that can be read."""
        return sum(_HEAD_BYTES + place.size for place in self._places.values())

    @property
    def positions(self) -> int:
        """Positions that something is known of."""
        return sum(place.rows for place in self._places.values())

    @property
    def is_whole(self) -> bool:
        """Whether nothing that this run was told was left out, in any of its processes and attempts."""
        return not self._left_out.exists()

    def notices(self) -> list[str]:
        """What people should know and were not told yet."""
        told, self._notices = self._notices, []
        return told

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Which of the keys, by place, nothing is known of; others' newest entries are looked at."""
        if all(key in self._places for key in keys):
            return []
        with self._locked():
            self._look()
        return [place for place, key in enumerate(keys) if key not in self._places]

    def recall(self, keys: Sequence[bytes], ask: Ask) -> list[Known]:
        """What is known by each key: found, or asked by the keys' places and kept while there is room."""
        self.missing(keys)
        known = {key: found for key in set(keys) if (found := self._get(key)) is not None}
        self.counts.found += sum(len(one.ids) for one in known.values())
        first: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            if key not in known:
                first.setdefault(key, place)
        if first:
            told = dict(zip(first, ask(list(first.values())), strict=True))
            self.counts.asked += sum(len(one.ids) for one in told.values())
            known |= self._keep(told)
        return [known[key] for key in keys]

    def close(self) -> None:
        """Forgets the open files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def _keep(self, told: dict[bytes, Known]) -> dict[bytes, Known]:
        """Appends what is new; where another process was first, its value stands."""
        kept = {}
        with self._locked():
            self._look()
            for key, known in told.items():
                theirs = self._get(key)
                kept[key] = known if theirs is None else theirs
                if theirs is None:
                    self._append(key, known)
        return kept

    def _append(self, key: bytes, known: Known) -> None:
        payload = known.ids.astype("<i4").tobytes() + known.logprobs.astype("<f4").tobytes()
        if len(payload) + _HEAD_BYTES > self._room:
            self._leave_out(known)
            return
        head = _HEAD.pack(_MAGIC, key, *known.ids.shape, zlib.crc32(payload))
        if self._own is None:
            self._own = self.folder / f"{os.getpid()}-{token_hex(4)}{SUFFIX}"
            self._read[self._own] = 0
        with self._own.open("ab") as file:
            file.write(head + _CHECK.pack(zlib.crc32(head)) + payload)
        self._scan(self._own)

    def _leave_out(self, known: Known) -> None:
        self.counts.left_out += len(known.ids)
        if not self._told_full:
            self._told_full = True
            self._left_out.touch()
            self._notices.append(
                f"The folder of teachers' scores is full: {self.folder.parent}. The run goes on and keeps no "
                "more of them, so that it cannot be replayed without its teacher. Free old records there, or "
                "raise most_bytes; 1 GiB of the disk stays free."
            )

    def _get(self, key: bytes) -> Known | None:
        place = self._places.get(key)
        if place is None:
            return None
        payload = self._payload(place)
        if payload is None:
            del self._places[key]
            self._notices.append(f"A score in {place.file} is damaged, and passed over.")
            return None
        half = len(payload) // 2
        shape = (place.rows, place.width)
        ids = np.frombuffer(payload[:half], dtype="<i4").reshape(shape)
        logprobs = np.frombuffer(payload[half:], dtype="<f4").reshape(shape)
        return Known(ids.astype(np.int64), logprobs.astype(np.float32))

    def _payload(self, place: _Place) -> bytes | None:
        """An entry's bytes; None where they are not what was written."""
        payload = os.pread(self._open(place.file), place.size, place.offset)
        return payload if zlib.crc32(payload) == place.checksum else None

    def _open(self, file: Path) -> int:
        if file not in self._descriptors:
            self._descriptors[file] = os.open(file, os.O_RDONLY)
        return self._descriptors[file]

    def _look(self) -> None:
        """Takes in what was appended since; the caller holds the lock, so that no entry is half there."""
        for file in sorted(self.folder.glob(f"*{SUFFIX}")):
            self._scan(file)

    def _scan(self, file: Path) -> None:
        start, size = self._read.get(file, 0), file.stat().st_size
        if start is None or start == size:
            return
        for key, place in self._entries(file, start, size):
            known = self._places.get(key)
            # A second entry of a key is there because the first was damaged.
            if known is None or self._payload(known) is None:
                self._places[key] = place
            start = place.offset + place.size
        self._room -= size - (self._read.get(file) or 0)
        self._read[file] = start if start == size else None
        if start < size:
            self._notices.append(
                f"{file} is torn after {start} bytes; what follows is passed over."
            )

    def _entries(self, file: Path, start: int, size: int) -> Iterator[tuple[bytes, _Place]]:
        """Whole entries from `start` on, up to the first that is not."""
        while start + _HEAD_BYTES <= size:
            head = os.pread(self._open(file), _HEAD_BYTES, start)
            magic, key, rows, width, checksum = _HEAD.unpack(head[: _HEAD.size])
            place = _Place(file, start + _HEAD_BYTES, rows, width, checksum)
            sound = magic == _MAGIC and _CHECK.unpack(head[_HEAD.size :])[0] == zlib.crc32(
                head[: _HEAD.size]
            )
            if not sound or place.offset + place.size > size:
                return
            yield key, place
            start = place.offset + place.size

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all processes that read or write this record."""
        with (self.folder / "lock").open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
