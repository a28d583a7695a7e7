"""Models of the Hugging Face hub: found in this machine's cache or downloaded, progress told, refusals in words.

Weights come as safetensors alone. It knows no device and loads nothing.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

from opdcore.contract.errors import BadInput
from opdcore.contract.participant import HubModel

FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
TOLD_EVERY_SECONDS = 1.0
_COMMIT = re.compile(r"[0-9a-f]{40}")

# Bytes that are here, of how many.
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Here:
    """A model's folder on this machine, and the commit that it is."""

    folder: Path
    commit: str


def find(model: HubModel) -> Path | None:
    """The folder of a model that is wholly here; a branch or a tag may have moved, so only of a commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not _COMMIT.fullmatch(model.revision):
        return None
    try:
        found = snapshot_download(
            model.repo, revision=model.revision, allow_patterns=FILES, local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    return Path(found)


def download(model: HubModel, *, told: Told, field: str) -> Here:
    """Fetches what is not here yet; what came before a broken connection is kept and gone on from.

    Raises BadInput where the model is gated, unknown or out of reach, or the disk is full.
    """
    from huggingface_hub import snapshot_download

    with _in_words(model, field):
        files = snapshot_download(
            model.repo, revision=model.revision, allow_patterns=FILES, dry_run=True
        )
        wanted = [file for file in files if file.will_download]
        cache = Path(files[0].local_path).parents[2] if files else Path()
        with _watched(cache, sum(file.file_size or 0 for file in wanted), told):
            folder = snapshot_download(model.repo, revision=model.revision, allow_patterns=FILES)
    return Here(Path(folder), Path(folder).name)


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
    blobs = cache / "blobs"
    return sum(file.stat().st_blocks * 512 for file in blobs.iterdir()) if blobs.is_dir() else 0


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
    if isinstance(error, OSError) and error.errno == ENOSPC:
        return BadInput(
            "model.disk_full",
            f"{name} could not be fetched: the disk is full.",
            remedy="Free space for it on this host; what has come already is kept.",
            field=field,
        )
    return BadInput(
        "model.unreachable",
        f"{name} could not be fetched: {type(error).__name__}.",
        remedy="Check the network; what has come already is kept. Or register a local directory.",
        field=field,
    )
