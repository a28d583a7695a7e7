"""The run's folder on this worker, and what a job needs beside it: prompts, start, environment.

The same folder serves every attempt of a run, so that a later one goes on from its checkpoints. It
starts no process.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from django.conf import settings
from django.core.files.storage import Storage, storages

from opdcore.contract.job import Resource
from webapp.models import Device, Run
from webapp.services import run_documents, scores
from webapp.services.resources import ROLES, DeviceNeed, parsed
from workers.leases import Claim

JOB = "job.json"

# What the job inherits must not open the database, the broker or the object store to it, nor to
# code that it runs. The hub's token is what it downloads gated models with.
_SECRET_NAMES = {"DATABASE_URL", "REDIS_URL", "PGPASSWORD", "PGPASSFILE", "DJANGO_SETTINGS_MODULE"}
_SECRET_PREFIXES = ("STILLROOM_", "CELERY_", "AWS_", "AZURE_", "GOOGLE_", "POSTGRES_")
_SECRET_WORDS = ("SECRET", "PASSWORD", "TOKEN", "CREDENTIAL", "API_KEY", "PRIVATE_KEY")
_KEPT = {"HF_TOKEN", "TOKENIZERS_PARALLELISM", "STILLROOM_VLLM_PYTHON"}


def folder(run: Run) -> Path:
    """Where this run's checkpoints, traces, output and logs are on this worker."""
    return Path(settings.STATE_DIR) / "runs" / run.public_id


def prepare(claimed: Claim) -> Path:
    """Writes the prompt files and the job document; returns the latter's path."""
    home = folder(claimed.run)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    frozen = claimed.run.snapshot["prompt_sets"]
    files = {
        role: _prompt_file(home, role, one["storage_key"]) for role, one in frozen.items() if one
    }
    files["response_cache"] = Path(settings.STATE_DIR) / "responses"
    files["scores"] = Path(settings.STATE_DIR) / scores.FOLDER
    if server := _teacher_server(claimed):
        files["teacher_server"] = server
    if start := claimed.run.snapshot.get("start"):
        files["start"] = _start(home, start["storage_key"])
    job = run_documents.job_document(
        claimed.run, run_documents.LocalFiles(**files), resources=resources(claimed)
    )
    path = home / JOB
    _write(path, job.model_dump_json(indent=1).encode())
    return path


def environment(
    devices: tuple[Device, ...], *, inherited: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """The job's environment: no credentials, its own devices and threads, no spinning."""
    kept = {name: value for name, value in inherited.items() if not _secret(name)}
    indices = [device.name.partition(":")[2] for device in devices if device.kind == "cuda"]
    return kept | {
        "CUDA_VISIBLE_DEVICES": ",".join(indices),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "OMP_NUM_THREADS": str(threads()),
        "OMP_WAIT_POLICY": "PASSIVE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
    }


def resources(claimed: Claim) -> dict[str, Resource]:
    """Devices by role as the run's process will see them; a role without its own shares train's."""
    names = _visible(claimed.devices)
    by_role = {
        role: tuple(names[device.pk] for device in of_role)
        for role, of_role in claimed.held.items()
    }
    asked = parsed(claimed.run.resources)
    return {role: _granted(asked.get(role), by_role.get(role, by_role["train"])) for role in ROLES}


def threads() -> int:
    """CPU threads of one job: the cores, shared by the devices of this worker."""
    slots = max(1, len(settings.WORKER_DEVICES))
    return max(1, (os.cpu_count() or 1) // slots)


def _visible(devices: Sequence[Device]) -> dict[int, str]:
    """The name of each device in a process that sees the GPUs among them and no other."""
    gpus = [device.pk for device in devices if device.kind == "cuda"]
    numbered = {key: f"cuda:{index}" for index, key in enumerate(gpus)}
    slots = [device.pk for device in devices if device.kind != "cuda"]
    # A process trains on each, so several have names of their own.
    numbered |= {
        key: f"cpu:{index}" if len(slots) > 1 else "cpu" for index, key in enumerate(slots)
    }
    return numbered


def _granted(asked: DeviceNeed | None, devices: tuple[str, ...]) -> Resource:
    wanted = asked.threads if asked else None
    return Resource(devices=devices, threads=wanted or threads() * len(devices))


def _teacher_server(claimed: Claim) -> Path | None:
    """The folder of the server that the run shares; a GPU that it also trains on ends with the run."""
    on_processors = all(device.kind == "cpu" for device in claimed.devices)
    if not claimed.run.teacher_server or not ("teacher" in claimed.held or on_processors):
        return None
    return Path(settings.STATE_DIR) / "servers" / claimed.run.host / claimed.run.teacher_server


def _prompt_file(home: Path, role: str, storage_key: str) -> Path:
    """A copy of the stored prompt set; the job checks its hash."""
    return _fetched(storages["prompts"], storage_key, home / "prompts" / f"{role}.jsonl")


def _start(home: Path, storage_key: str) -> Path:
    """The folder of the weights that the student starts from; the job checks their hash."""
    return _fetched(storages["artifacts"], storage_key, home / "start" / "model.safetensors").parent


def _fetched(storage: Storage, storage_key: str, path: Path) -> Path:
    """A stored file beside the job, fetched once."""
    if path.exists() and path.stat().st_size == storage.size(storage_key):
        return path
    path.parent.mkdir(exist_ok=True)
    aside = path.with_suffix(".part")
    with storage.open(storage_key) as stored, aside.open("wb") as copy:
        shutil.copyfileobj(stored, copy, 1 << 20)
    aside.rename(path)
    return path


def _write(path: Path, content: bytes) -> None:
    aside = path.with_suffix(".part")
    aside.write_bytes(content)
    aside.rename(path)


def _secret(name: str) -> bool:
    if name in _KEPT:
        return False
    return (
        name in _SECRET_NAMES
        or name.startswith(_SECRET_PREFIXES)
        or any(word in name.upper() for word in _SECRET_WORDS)
    )
