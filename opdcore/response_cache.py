"""Responses that were sampled before, by all that decides them: model, prompts, sampling and seed.

What is found here is what sampling would give again, token for token, so a run is the same with it and
without. It knows no stage and no filter.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch

from opdcore.files import hash_file, write_bytes
from opdcore.rollouts import Rollout, Sampling

# The oldest blocks are dropped beyond this.
MOST_BYTES = 2 << 30
# Raise it when the sampler gives other responses for the same seed.
VERSION = 1


class ResponseCache:
    """Blocks of responses of one model, told by `whose`; without a folder it keeps nothing."""

    def __init__(
        self,
        folder: Path | None,
        whose: Sequence[str | int] = (),
        *,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._folder, self._whose, self._most_bytes = folder, [VERSION, *whose], most_bytes

    def recall(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        seed: int,
        sample: Callable[[], list[Rollout]],
    ) -> list[Rollout]:
        """The block's responses, from the folder or sampled now and kept there."""
        if self._folder is None:
            return sample()
        file = self._folder / f"{self._key(prompts, sampling, seed)}.json"
        # Another process may drop it at any time.
        with suppress(FileNotFoundError):
            found = json.loads(file.read_bytes())
            os.utime(file)
            return [_rollout(told) for told in found]
        rollouts = sample()
        self._folder.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(f".{os.getpid()}.part")
        write_bytes(aside, json.dumps([asdict(one) for one in rollouts]).encode())
        aside.rename(file)
        _drop_oldest(self._folder, self._most_bytes)
        return rollouts

    def _key(self, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> str:
        told = asdict(sampling) | {"stop_ids": sorted(sampling.stop_ids)}
        decides = [self._whose, [list(ids) for ids in prompts], told, seed]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _rollout(told: dict[str, list[float]]) -> Rollout:
    lists = {key: tuple(told[key]) for key in ("ids", "logprobs")}
    return Rollout(**(told | lists))  # type: ignore[arg-type]


def whose(model: Path, device: torch.device) -> list[str]:
    """What decides what a model says here: torch, the device, hashes of its files."""
    files = [*sorted(model.glob("*.safetensors")), model / "config.json"]
    return [torch.__version__, device.type, *(hash_file(file).sha256 for file in files)]


def _drop_oldest(folder: Path, most_bytes: int) -> None:
    total = 0
    # Where another process drops some meanwhile, the next block tries again.
    with suppress(FileNotFoundError):
        for file in sorted(folder.glob("*.json"), key=lambda file: -file.stat().st_mtime):
            total += file.stat().st_size
            if total > most_bytes:
                file.unlink()
