"""Cells: one program in a fresh process, pinned to cores of its own, and pairs of them in turn.

It knows how a process is started and compared, not what the programs measure.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.records import ROOT

OURS = ROOT / ".venv" / "bin" / "python"
PEER = ROOT / ".venv-bench" / "bin" / "python"
Spec = Mapping[str, Any]


@dataclass(frozen=True)
class Protocol:
    """How much is measured: pairs of fresh processes, steps in each, and their threads."""

    pairs: int
    warmup: int
    measured: int
    threads: int = 1

    @property
    def told(self) -> dict[str, int]:
        """What stands beside the figures."""
        return {"warmup": self.warmup, "measured": self.measured, "threads": self.threads}


def run(program: str, spec: Spec, *, threads: int = 1) -> dict[str, Any]:
    """The result of `benchmarks.programs.PROGRAM`; a program named `peer_*` runs in the peer's environment.

    Raises RuntimeError with the end of its output where it fails.
    """
    python = PEER if program.startswith("peer_") else OURS
    if not python.exists():
        raise SystemExit(f"{python.relative_to(ROOT)} is missing: run scripts/peer first.")
    with tempfile.TemporaryDirectory() as folder:
        spec_file, result = Path(folder, "spec.json"), Path(folder, "result.json")
        told = {**spec, "threads": threads, "result": str(result), "work": folder}
        spec_file.write_text(json.dumps(told), encoding="utf-8")
        command = [*_pinned(threads), str(python), "-m", f"benchmarks.programs.{program}"]
        done = subprocess.run(
            [*command, str(spec_file)],
            cwd=ROOT,
            env=_environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{program} ended with {done.returncode}:\n{done.stdout[-3000:]}")
        figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return figures


def in_turn(name: str, spec: Spec, protocol: Protocol) -> Iterator[dict[str, Any]]:
    """Rows of `ours_NAME` and `peer_NAME`, A B A B: each pair meets the machine in the same minutes."""
    for pair in range(protocol.pairs):
        for side in ("ours", "peer"):
            told = {**spec, "warmup": protocol.warmup, "measured": protocol.measured}
            figures = run(f"{side}_{name}", told, threads=protocol.threads)
            yield {"pair": pair, "side": side, **protocol.told, **figures}


def _pinned(threads: int) -> list[str]:
    """The last cores, since a machine's own work tends to be on the first ones."""
    if shutil.which("taskset") is None:
        return []
    cores = sorted(os.sched_getaffinity(0))[-threads:]
    return ["taskset", "-c", ",".join(map(str, cores))]


def _environment(threads: int) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }
