"""The disk that a run's folder holds, looked at while the run goes on. It knows no row and no file's meaning."""

from __future__ import annotations

import os
import time
from pathlib import Path

LOOK_SECONDS = 1.0


class Footprint:
    """The most that a folder has held so far."""

    def __init__(self, folder: Path, *, every_seconds: float = LOOK_SECONDS) -> None:
        self.folder, self.every_seconds = folder, every_seconds
        self.most_bytes = 0
        self._looked_at: float | None = None

    def grown(self, *, at_once: bool = False) -> int | None:
        """The folder's size where it is larger than ever; None otherwise, and shortly after a look."""
        now = time.monotonic()
        recent = self._looked_at is not None and now - self._looked_at < self.every_seconds
        if recent and not at_once:
            return None
        self._looked_at = now
        size = size_of(self.folder)
        if size <= self.most_bytes:
            return None
        self.most_bytes = size
        return size


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; one that goes away meanwhile counts nothing."""
    return sum(_size(Path(root) / file) for root, _, files in os.walk(folder) for file in files)


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except FileNotFoundError:
        return 0
