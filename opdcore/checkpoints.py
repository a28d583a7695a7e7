"""Checkpoints: all that a stage needs to go on exactly where it stopped.

A checkpoint is a folder of weights and optimizer state (safetensors) and a state file (JSON), with a
manifest of hashes. Nothing here is a pickle. It knows no stage.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from opdcore.contract.errors import BadInput, EngineFailure
from opdcore.contract.job import StartCheckpoint
from opdcore.contract.recipe import Recipe
from opdcore.files import (
    Written,
    hash_file,
    intact,
    whole_folder,
    write_bytes,
    write_manifest,
    write_tensors,
)
from opdcore.models.network import Network
from opdcore.optimizer import AdamW

FOLDER = "checkpoints"
STARTS = "starts"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
FOLLOWED = "followed.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk."""

    folder: Path
    stage_index: int
    step: int


def save(
    root: Path, model: nn.Module, optimizer: Mapping[str, Tensor], *, stage_index: int,
    step: int, recipe_sha256: str, followed: Mapping[str, Any] | None = None,
    beside: Mapping[str, nn.Module] | None = None,
) -> tuple[Saved, Written]:  # fmt: skip
    """Writes the checkpoint after `step`; returns it with its manifest's hash and total size.

    `optimizer` is its state as `optimizer_tensors` names it. `followed` is what a stage has followed step
    by step and goes on from, as JSON; `beside` are other networks that change with the student, by name.
    """
    folder = root / f"stage-{stage_index:02d}-step-{step:07d}"
    state = {"version": 1, "stage_index": stage_index, "step": step, "recipe_sha256": recipe_sha256}
    with whole_folder(folder) as aside:
        files = {
            WEIGHTS: write_tensors(aside / WEIGHTS, _weights(model)),
            OPTIMIZER: write_tensors(aside / OPTIMIZER, optimizer),
            STATE: write_bytes(aside / STATE, json.dumps(state).encode()),
        }
        if followed is not None:
            files[FOLLOWED] = write_bytes(aside / FOLLOWED, json.dumps(followed).encode())
        for name, network in (beside or {}).items():
            file = f"{name}.safetensors"
            files[file] = write_tensors(aside / file, _weights(network))
        manifest = write_manifest(aside, files)
    size = manifest.size_bytes + sum(written.size_bytes for written in files.values())
    return Saved(folder, stage_index, step), Written(manifest.sha256, size)


def recipe_sha256(recipe: Recipe) -> str:
    """Hash of the recipe that a checkpoint belongs to."""
    return hashlib.sha256(recipe.model_dump_json().encode()).hexdigest()


def newest(root: Path, *, recipe_sha256: str) -> Saved | None:
    """The newest checkpoint that is whole; damaged ones are passed over.

    Raises BadInput where the folder holds checkpoints of another recipe.
    """
    for folder in sorted(root.glob("stage-*-step-*"), reverse=True):
        if not intact(folder):
            continue
        state = json.loads((folder / STATE).read_bytes())
        if state["recipe_sha256"] != recipe_sha256:
            raise BadInput(
                "run.other_recipe",
                f"{folder} belongs to another recipe.",
                remedy="Give each run a folder of its own.",
                field="run-dir",
            )
        return Saved(folder, state["stage_index"], state["step"])
    return None


def followed(saved: Saved) -> dict[str, Any] | None:
    """What a stage goes on from besides weights and optimizer; None where it follows nothing."""
    file = saved.folder / FOLLOWED
    if not file.exists():
        return None
    state: dict[str, Any] = json.loads(file.read_bytes())
    return state


def restore_optimizer(saved: Saved, model: nn.Module, optimizer: AdamW) -> None:
    """Puts the optimizer's state back, bit for bit; of weights in pieces, this process' pieces."""
    tensors = load_file(saved.folder / OPTIMIZER)
    for name, parameter in model.named_parameters():
        prefix = f"{name}|"
        entries = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if entries:
            # All of it, the step too: a fused optimizer reads its step on the parameter's device.
            optimizer.state[parameter] = {
                key: _cut_like(parameter, value.to(parameter.device))
                for key, value in entries.items()
            }


def restore_weights(folder: Path, model: nn.Module) -> None:
    """Copies a checkpoint's weights into the model."""
    _copy(folder / WEIGHTS, model)


def restore_beside(folder: Path, name: str, network: nn.Module) -> None:
    """Copies another network's weights from the checkpoint that keeps them beside the student's."""
    _copy(folder / f"{name}.safetensors", network)


@torch.no_grad()
def _copy(file: Path, model: nn.Module) -> None:
    tensors = load_file(file)
    for name, target in _weights(model).items():
        target.copy_(tensors[name])


def enter(root: Path, model: nn.Module, *, stage_index: int, resumed: bool) -> Path:
    """The folder of the weights with which a stage is entered, written when it is; for every attempt.

    Raises EngineFailure where a resumed stage's are gone: later weights are not what it began with.
    """
    folder = root / f"stage-{stage_index:02d}"
    if intact(folder):
        return folder
    if resumed:
        raise EngineFailure(
            "run.start_lost",
            f"{folder}, the weights with which the stage began, is gone or damaged.",
            remedy="Start the run anew.",
        )
    with whole_folder(folder) as aside:
        write_manifest(aside, {WEIGHTS: write_tensors(aside / WEIGHTS, _weights(model))})
    return folder


def start_from(start: StartCheckpoint, model: nn.Module) -> None:
    """Gives a model the weights of a checkpoint's or an output's folder.

    Raises BadInput where they cannot be read, are not those named, or are another model's.
    """
    file = Path(start.path) / WEIGHTS
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise _bad_start("start.unreadable", f"{file} cannot be read: {error}.") from error
    if start.sha256 is not None and hash_file(file).sha256 != start.sha256:
        raise _bad_start("start.changed", f"{file} does not have the hash that the job names.")
    if any(".base_layer." in name for name in tensors):
        raise _bad_start("start.adapters", f"{file} holds adapters that are not merged yet.")
    for name, target in _weights(model).items():
        if name not in tensors or tensors[name].shape != target.shape:
            shape = list(target.shape)
            raise _bad_start("start.other_model", f"{file} has no {name} of shape {shape}.")
    restore_weights(file.parent, model)


def _bad_start(code: str, message: str) -> BadInput:
    remedy = "Name an output, or a checkpoint of full tuning, of a run with the same student."
    return BadInput(code, message, remedy=remedy, field="start")


def prune(root: Path, *, keep: int, spare: Path | None = None) -> list[Path]:
    """Removes all but the newest `keep` checkpoints and one that is spared; returns what was removed."""
    folders = sorted(root.glob("stage-*-step-*"))
    removed = [folder for folder in folders[: max(0, len(folders) - keep)] if folder != spare]
    for folder in removed:
        shutil.rmtree(folder)
    return removed


def newest_until(root: Path, *, stage_index: int, step: int) -> Path | None:
    """The folder of the stage's newest checkpoint that is no later than `step`; None without one."""
    last = root / f"stage-{stage_index:02d}-step-{step:07d}"
    folders = sorted(root.glob(f"stage-{stage_index:02d}-step-*"))
    return max((folder for folder in folders if folder <= last), default=None)


def save_output(target: Path, network: Network, source: Path) -> Written:
    """Writes a folder that opens with `AutoModelForCausalLM.from_pretrained`.

    Configuration, tokenizer and template are copied from `source`, the student's own folder.
    """
    with whole_folder(target) as aside:
        for file in sorted(source.iterdir()):
            if file.suffix in (".json", ".jinja", ".txt") and "safetensors" not in file.name:
                shutil.copy(file, aside / file.name)
        network.save(aside)
        files = {file.name: hash_file(file) for file in sorted(aside.iterdir())}
        manifest = write_manifest(aside, files)
    size = manifest.size_bytes + sum(written.size_bytes for written in files.values())
    return Written(manifest.sha256, size)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers; tied ones once."""
    persistent = model.state_dict().keys()
    buffers = {name: value for name, value in model.named_buffers() if name in persistent}
    return dict(model.named_parameters()) | buffers


def optimizer_tensors(model: nn.Module, optimizer: AdamW) -> dict[str, Tensor]:
    """The optimizer's state by the names of the parameters that it is of."""
    return {
        f"{name}|{key}": torch.as_tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _cut_like(parameter: Tensor, value: Tensor) -> Tensor:
    """The value in pieces among several processes where the parameter is; else the value."""
    if not hasattr(parameter, "full_tensor"):
        return value
    from opdcore.models.sharded import cut_like

    return cut_like(parameter, value)
