"""The student's responses from a server: its weights are given before each step, and checked after it.

A server that was restarted meanwhile has its first weights again; its version then tells, and what it has
written is drawn anew. It knows no loss.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from opdcore.contract.errors import EngineFailure
from opdcore.files import hash_file
from opdcore.models import LoadedModel, adapters
from opdcore.rollouts import Rollout, Sampling
from opdcore.serving import widening
from opdcore.serving.model import ServedModel

TRIES = 3


@dataclass(frozen=True)
class ServedSampler:
    """A server that is given the student's weights through a folder; `on_cpu` where that is our own.

    One that `sleeps` has memory while it samples alone, and the trainer has it in between.
    """

    served: ServedModel
    folder: Path
    on_cpu: bool
    sleeps: bool = False
    # Hash of the weights by the version under which they were given.
    _given: dict[str, str] = field(default_factory=dict)

    @property
    def tolerated(self) -> float:
        """Nats by which both sides' logprobs may differ in the mean: float32 here and there, or bfloat16."""
        return 2e-3 if self.on_cpu else 0.05

    def sample(
        self,
        student: LoadedModel,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        seed: int,
        version: str,
    ) -> list[Rollout]:
        """One rollout of each prompt by the student as it is, which is called `version` from now on."""
        for _ in range(TRIES):
            known = self.served.version()
            if known != version:
                self._give(student, version, known)
            rollouts = self.served.respond(prompts, sampling=sampling, seed=seed)
            if self.served.version() == version:
                if self.sleeps:
                    self.served.sleep()
                return rollouts
        raise EngineFailure(
            "serving.weights_lost",
            f"The server lost the student's weights {TRIES} times while it wrote.",
            remedy="See the server's log for why it restarts; no other run may give it weights.",
        )

    def _give(self, student: LoadedModel, version: str, known: str) -> None:
        """Weights that are the last ones' bytes are no change, and after a restart nothing is known."""
        before = self._given.get(known)
        self._write(student)
        written = hash_file(self.folder / widening.WEIGHTS).sha256
        differs = before is not None and before != written
        if self.sleeps:
            self._make_room(student)
        self.served.give(self.folder, version=version, differs=differs)
        if self.sleeps:
            self.served.wake("kv_cache")
        self._given.clear()
        self._given[version] = written

    def _make_room(self, student: LoadedModel) -> None:
        """What the trainer keeps of the GPU without using it goes to the server."""
        if student.device.type == "cuda":
            torch.cuda.empty_cache()
        self.served.wake("weights")

    def _write(self, student: LoadedModel) -> None:
        """The student's weights as they are now, as the server reads them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        config = json.loads((student.folder / widening.CONFIG).read_bytes())
        theirs = self.served.served_folder()
        wide = json.loads((theirs / widening.CONFIG).read_bytes()) if theirs else config
        f = widening.head_width(wide) // widening.head_width(config)
        weights = adapters.plain_weights(student.model)
        widening.write(weights, config, self.folder / widening.WEIGHTS, f=f)
