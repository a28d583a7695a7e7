"""Models of the Hugging Face hub: found in this machine's cache or downloaded, progress told, refusals in words.

Weights come as safetensors alone. A line that is cut is gone on from; of a process that ends, the files that
have wholly come are kept and the others begin anew. It knows no device and loads nothing.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EDQUOT, ENOSPC
from pathlib import Path

from opdcore.contract.errors import BadInput
from opdcore.contract.participant import HubModel
from opdcore.weights_files import read_weights

FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
TOLD_EVERY_SECONDS = 1.0
UNREACHABLE = "model.unreachable"
# A part that nobody has written to for so long is of a process that was killed; none goes on from it.
PART_LOST_SECONDS = 3600.0
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Bytes that are here, of how many.
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Here:
    """A model's folder on this machine, and the commit that it is."""

    folder: Path
    commit: str


def find(model: HubModel) -> Path | None:
    """The folder of a model that is wholly here.

    A branch or a tag may have moved, so only of a commit, unless this machine is told to ask nobody.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not (_COMMIT.fullmatch(model.revision) or constants.HF_HUB_OFFLINE):
        return None
    try:
        found = Path(
            snapshot_download(
                model.repo, revision=model.revision, allow_patterns=FILES, local_files_only=True
            )
        )
        # A cache without a list of the model's files cannot tell a part from the whole.
        read_weights(found)
    except (LocalEntryNotFoundError, BadInput):
        return None
    return found


def download(model: HubModel, *, told: Told, field: str) -> Here:
    """Fetches what is not here yet; where the hub is out of reach, what is wholly here will do.

    Raises BadInput where the model is gated, unknown or out of reach, or the disk is full.
    """
    try:
        folder = _fetch(model, told, field)
    except BadInput as error:
        # Where the hub refuses, its word counts.
        found = find(model) if error.info.code == UNREACHABLE else None
        if found is None:
            raise
        folder = found
    return Here(folder, folder.name)


def _fetch(model: HubModel, told: Told, field: str) -> Path:
    from huggingface_hub import snapshot_download

    with _in_words(model, field):
        files = snapshot_download(
            model.repo, revision=model.revision, allow_patterns=FILES, dry_run=True
        )
        total = sum(file.file_size or 0 for file in files if file.will_download)
        cache = Path(files[0].local_path).parents[2] if files else Path()
        _forget_parts(cache)
        _refuse_small_disk(model, cache, total, field=field)
        with _watched(cache, total, told):
            folder = snapshot_download(model.repo, revision=model.revision, allow_patterns=FILES)
    return Path(folder)


def _forget_parts(cache: Path) -> None:
    """Frees what killed downloads of this model have left behind."""
    long_ago = time.time() - PART_LOST_SECONDS
    for part in (cache / "blobs").glob("*.incomplete"):
        with suppress(FileNotFoundError):
            if part.stat().st_mtime < long_ago:
                part.unlink()


def _refuse_small_disk(model: HubModel, cache: Path, wanted: int, *, field: str) -> None:
    """Raises BadInput before the first byte where not all of them would fit."""
    there = next((one for one in (cache, *cache.parents) if one.exists()), Path())
    free = shutil.disk_usage(there).free
    if wanted > free:
        raise BadInput(
            "model.disk_full",
            f"{model.repo} takes {wanted} bytes more, and the disk of the hub's cache has {free}.",
            remedy="Free space for it on this host, or point HF_HOME to a larger disk.",
            field=field,
        )


@contextmanager
def _watched(cache: Path, total: int, told: Told) -> Iterator[None]:
    """Says every second how much has come: what the cache has grown by."""
    before, over = _bytes(cache), threading.Event()

    def watch() -> None:
        while not over.wait(TOLD_EVERY_SECONDS):
            told(min(total, max(0, _bytes(cache) - before)), total)

    told(0, total)
    thread = threading.Thread(target=watch, name="download", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    told(total, total)


def _bytes(cache: Path) -> int:
    """What the cache holds of the model; a part may become a file while it is looked at."""
    held = 0
    for file in (cache / "blobs").glob("*"):
        with suppress(FileNotFoundError):
            held += file.stat().st_blocks * 512
    return held


@contextmanager
def _in_words(model: HubModel, field: str) -> Iterator[None]:
    """What the hub's client raises, as what people can do about it."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        # A look at what is to be fetched wraps what went wrong.
        cause = error.__cause__ if isinstance(error, errors.DryRunError) else error
        raise _refusal(cause or error, f"{model.repo} at {model.revision}", field) from error


def _refusal(error: BaseException, name: str, field: str) -> BadInput:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return BadInput(
            "model.gated",
            f"{name} is gated: the hub wants to know who asks.",
            remedy="Accept its terms on the hub, and set the project secret HF_TOKEN to a token that may "
            "read it.",
            field=field,
        )
    if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
        return BadInput(
            "model.not_found",
            f"The hub has no {name}, or does not show it to this token.",
            remedy="Check id and revision; a private model needs the project secret HF_TOKEN.",
            field=field,
        )
    if isinstance(error, OSError) and error.errno in (ENOSPC, EDQUOT):
        return BadInput(
            "model.disk_full",
            f"{name} could not be fetched: the disk is full.",
            remedy="Free space for it on this host; the files that have wholly come are kept.",
            field=field,
        )
    why = getattr(error, "strerror", None) or type(error).__name__
    return BadInput(
        UNREACHABLE,
        f"{name} could not be fetched: {why}.",
        remedy="Check the network; the files that have wholly come are kept. Or register a local directory.",
        field=field,
    )
