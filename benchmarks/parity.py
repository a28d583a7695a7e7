"""Whether both engines compute the same: one step's loss and gradient on the same responses.

Speed is compared only where this holds. It knows files of gradients, not how either engine made them.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from benchmarks import cells, pairs
from benchmarks.records import Row

COSINE = 0.99999
RELATIVE_ERROR = 1e-4
# Responses of 1 to 64 tokens, so that padding is part of what is compared.
PAIR = pairs.small(1024, hazard=1 / 32)
BATCH, MAX_TOKENS = 16, 64


@cache
def gate() -> tuple[Row, ...]:
    """One row a divergence; ends the program where one of them does not agree."""
    rows = tuple(_compare())
    failing = [row for row in rows if not agrees(row)]
    if failing:
        raise SystemExit(f"Gradients differ, so no time is compared: {failing}")
    return rows


def agrees(row: Row) -> bool:
    """Whether loss and gradient are within the tolerances."""
    return (
        row["cosine"] > COSINE
        and row["relative_error"] < RELATIVE_ERROR
        and row["loss_relative_error"] < RELATIVE_ERROR
    )


def _compare() -> list[dict[str, Any]]:
    pairs.make(PAIR)
    with tempfile.TemporaryDirectory() as folder:
        spec = {
            "pair": str(PAIR.folder), "folder": folder, "batch": BATCH, "max_tokens": MAX_TOKENS,
            "learning_rate": 1e-5, "weight_decay": 0.0, "device": "cpu", "passes": 1,
        }  # fmt: skip
        ours = cells.run("ours_parity", spec)
        peer = cells.run("peer_parity", {**spec, "names": list(ours["losses"])})
        return [
            {
                "divergence": name,
                "positions": ours["positions"],
                "loss_ours": loss,
                "loss_peer": peer["losses"][name],
                "loss_relative_error": abs(loss / peer["losses"][name] - 1),
                **difference(
                    load_file(Path(folder, name, "output", "model.safetensors")),
                    load_file(Path(folder, name, "peer.safetensors")),
                ),
            }
            for name, loss in ours["losses"].items()
        ]


def difference(
    ours: dict[str, NDArray[np.float32]], peer: dict[str, NDArray[np.float32]]
) -> dict[str, float]:
    """Cosine and relative error of two whole gradients, tensor by tensor of the same name."""
    if ours.keys() != peer.keys():
        raise ValueError(f"Only one side has {sorted(ours.keys() ^ peer.keys())}.")
    a, b = (
        np.concatenate([side[name].astype(np.float64).ravel() for name in sorted(peer)])
        for side in (ours, peer)
    )
    return {
        "cosine": float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))),
        "relative_error": float(np.linalg.norm(a - b) / np.linalg.norm(b)),
    }
