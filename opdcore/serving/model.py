"""A model behind a server: scores what it is given, answers prompts, and can be given new weights.

Its folder, which may hold no weights, says how prompts are rendered and what its tokens mean. It knows no
objective and no training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from opdcore.batches import Batch, sequences
from opdcore.contract.errors import BadInput, EngineFailure, StillroomError
from opdcore.inspection import ModelCard
from opdcore.order import seed_of
from opdcore.rendering import Renderer
from opdcore.rollouts import Rollout, Sampling
from opdcore.serving import requests
from opdcore.serving.connection import Connection
from opdcore.serving.requests import COMPLETIONS, GENERATE, Body, Ids, Known
from opdcore.sides import KnownSide

# A server that is restarted gives up what is under way, and is then waited for.
TRIES = 5
# The version of weights that a server has given up.
ASLEEP = "asleep"
_NOTHING = sha256(b"").hexdigest()


@dataclass(frozen=True)
class ServedModel:
    """A model that is asked over a connection; `device` is where its answers are put.

    With `student_top_k` it is asked for the logprobs of the student's most probable tokens too.
    """

    connection: Connection
    renderer: Renderer
    card: ModelCard
    folder: Path
    device: torch.device
    student_top_k: bool = False

    @property
    def name(self) -> str:
        """Its name at the server."""
        return self.connection.endpoint.model

    def known(self, given: Sequence[tuple[Sequence[int], int]], *, k: int) -> list[Known]:
        """What it tells of each sequence from a position on: its k most probable tokens, and the one given."""
        tokens = self.connection.endpoint.tokens_a_request
        asked = list(
            requests.scoring_bodies(self.name, [ids for ids, _ in given], k=k, tokens=tokens)
        )
        replies = self.connection.post_all(COMPLETIONS, [body for _, body in asked])
        found: dict[int, Known] = {}
        for (places, _), reply in zip(asked, replies, strict=True):
            for place, choice in zip(places, requests.choices(reply, len(places)), strict=True):
                ids, start = given[place]
                found[place] = requests.read_known(choice, ids, start=start, k=k)
        return [found[place] for place in range(len(given))]

    def known_of(
        self, given: Sequence[tuple[Sequence[int], int]], asked: Sequence[Ids], *, k: int
    ) -> list[Known]:
        """The same, and the tokens (T, n) that are asked for at each position, before the one given."""
        bodies = [
            requests.asking_body(self.name, ids, rows, start=start, k=k)
            for (ids, start), rows in zip(given, asked, strict=True)
        ]
        replies = self.connection.post_all(GENERATE, bodies)
        return [
            requests.read_asked(reply, ids, rows, start=start, k=k)
            for reply, (ids, start), rows in zip(replies, given, asked, strict=True)
        ]

    def side(
        self, batch: Batch, *, side: int, k: int, asked: torch.Tensor | None = None
    ) -> KnownSide:
        """What it tells of a batch's N positions; `asked` (N, n) are further tokens to tell of."""
        given = sequences(batch, side=side)
        if asked is None:
            known = self.known(given, k=k)
        else:
            rows = asked.cpu().split([len(ids) - start for ids, start in given])
            known = self.known_of(given, [one.numpy() for one in rows], k=k)
        return as_side(known, k=k, device=self.device)

    def check(self) -> None:
        """Raises BadInput where it cannot tell what it will be asked for."""
        if not self.student_top_k:
            return
        token = 1
        try:
            self.known_of([((token, token), 1)], [np.array([[token]])], k=1)
        except StillroomError as error:
            if error.info.code not in {"serving.refused", "serving.unreadable"}:
                raise
            raise BadInput(
                "serving.no_student_top_k",
                "The server cannot tell the logprobs of the student's most probable tokens: "
                f"{error.info.message}",
                remedy="Start vLLM 0.32 or newer on a GPU with --enable-scale-out, or train on support "
                "teacher or intersection, or on form sampled.",
                field="served.student_top_k",
            ) from error

    def respond(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, seed: int
    ) -> list[Rollout]:
        """One rollout of each prompt; each is drawn by a seed of its own, so their order changes nothing."""
        bodies = [
            requests.sampling_body(self.name, ids, sampling, seed=seed_of(seed, row) >> 32)
            for row, ids in enumerate(prompts)
        ]
        told = self._whole(bodies)
        return [requests.read_rollout(one, row, sampling) for row, one in enumerate(told)]

    def _whole(self, bodies: Sequence[Body]) -> list[Body]:
        """A response to each request; those that a stopping server gave up are asked for again."""
        found: dict[int, Body] = {}
        for _ in range(TRIES):
            missing = [row for row in range(len(bodies)) if row not in found]
            replies = self.connection.post_all(COMPLETIONS, [bodies[row] for row in missing])
            for row, reply in zip(missing, replies, strict=True):
                (choice,) = requests.choices(reply, 1)
                if requests.is_whole(choice):
                    found[row] = choice
            if len(found) == len(bodies):
                return [found[row] for row in range(len(bodies))]
        raise EngineFailure(
            "serving.given_up",
            f"The server gave up {len(bodies) - len(found)} responses {TRIES} times in a row.",
            remedy="See in its log why it stops; then resume the run.",
        )

    def version(self) -> str:
        """What its weights were called when they were last given to it."""
        return str(self.connection.get("/weight_info").get("weight_version"))

    def give(self, folder: Path, *, version: str, differs: bool) -> None:
        """Has the server read its weights anew from a folder, and calls them by a version.

        Raises EngineFailure where they are known to differ from what it has, and did not change by it.
        A server on a CPU keeps packed matrices alone, whose checksums are those of nothing: there equal
        ones say nothing, as where adapters change no other weight, and the logprobs have to tell.
        """
        before = self._checksums() if differs else None
        self.connection.post(
            "/collective_rpc",
            {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}},
            once=True,
        )
        self.connection.post("/reset_prefix_cache", {})
        if before and _NOTHING not in before.values() and self._checksums() == before:
            raise EngineFailure(
                "serving.weights_not_taken",
                f"The server's weights are the same after they were read from {folder}.",
                remedy="See the server's log; it must be of version 0.32 or newer and started with "
                "VLLM_SERVER_DEV_MODE=1.",
            )
        self.connection.post("/update_weight_version", {"new_version": version})

    def sleep(self) -> None:
        """Has the server give up its memory, with the weights in it."""
        self.connection.post("/sleep?level=2", {}, once=True)
        self.connection.post("/update_weight_version", {"new_version": ASLEEP})

    def wake(self, part: Literal["weights", "kv_cache"]) -> None:
        """Has it take memory again for a part; one that is awake is left as it is."""
        self.connection.post(f"/wake_up?tags={part}", {}, once=True)

    def served_folder(self) -> Path | None:
        """The folder that the server was started with, where it can be read from here."""
        told = self.connection.get("/v1/models")["data"]
        roots = [Path(one["root"]) for one in told if one["id"] == self.name and one.get("root")]
        return next((root for root in roots if root.is_dir()), None)

    def _checksums(self) -> dict[str, str]:
        told = self.connection.post("/weight_checker", {"action": "checksum"})
        checksums: dict[str, str] = told["checksums"]
        return checksums


def as_side(known: Sequence[Known], *, k: int, device: torch.device) -> KnownSide:
    """What was told of several texts, one after another, as the side of a comparison."""
    return KnownSide(
        torch.cat([torch.from_numpy(one.ids) for one in known]).to(device),
        torch.cat([torch.from_numpy(one.logprobs) for one in known]).to(device),
        k,
    )
