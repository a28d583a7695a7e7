"""The engine beside TRL and transformers: a step, the loss alone, rollouts; time, memory and what is left.

Each part is measured by pairs of fresh processes in turn, and only where both engines' gradients agree.
It knows workloads and how their rows are summarised, not how a cell is run or what runs in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import fmean, median
from typing import Any, Literal

from benchmarks import cells, limits, pairs, parity
from benchmarks.cells import Protocol
from benchmarks.pairs import Pair
from benchmarks.records import Row, Rows

FULL = Protocol(pairs=5, warmup=2, measured=12)
QUICK = Protocol(pairs=1, warmup=1, measured=3)
LEARNING = {"learning_rate": 1e-5, "weight_decay": 0.01}
# The shapes of Qwen2.5's 0.5B student and 1.5B teacher.
LOSS = {"positions": 512, "student_size": 896, "teacher_size": 1536, "vocabulary": 151_936}
MEGABYTE = 1e6
# A mean of 64 tokens of at most 256.
QUARTER = 1 / 64

Program = Literal["step", "rollout", "loss"]
# What one lap is counted in, and whether more of it is better.
UNITS = {
    "seconds": "s",
    "seconds_per_1000_tokens": "s/1000 tokens",
    "tokens_per_second": "tokens/s",
}


@dataclass(frozen=True)
class Workload:
    """What one row measures: a program on a pair, at most `warmup` and `measured` laps a process.

    `passes` is in how many equal parts the peer cuts a step's rollouts for their gradient; ours has the
    room of one such part, in tokens, and cuts as it likes.
    """

    program: Program
    figure: str
    pair: Pair | None = None
    batch: int = 0
    max_tokens: int = 0
    measured: int = FULL.measured
    warmup: int = FULL.warmup
    device: str = "cpu"
    passes: int = 1

    @property
    def spec(self) -> dict[str, Any]:
        """What both sides' programs are told."""
        told = {"device": self.device}
        if self.pair is None:
            return told | LOSS
        return told | LEARNING | {
            "pair": str(self.pair.folder),
            "batch": self.batch,
            "max_tokens": self.max_tokens,
            "passes": self.passes,
        }  # fmt: skip


def _rollout(model_type: str, *, varying: bool) -> Workload:
    hazard = QUARTER if varying else pairs.NEVER
    pair = pairs.small(1024, hazard=hazard, model_type=model_type)
    return Workload("rollout", "tokens_per_second", pair, 64, 256 if varying else 64, measured=5)


def _on_gpu(student: str, teacher: str) -> Workload:
    pair = Pair(pairs.BILLIONS[student], pairs.BILLIONS[teacher], hazard=1 / 256)
    return Workload(
        "step", "seconds_per_1000_tokens", pair, 64, 1024,
        measured=5, device="cuda:0", passes=16,
    )  # fmt: skip


# The rows at 32,000 tokens and the loss are heavy: fewer laps in each process. In four passes TRL takes less
# memory, and at 32,000 tokens less time: its best setting has a row of its own.
WORKLOADS = {
    "distill_step_v1k": Workload("step", "seconds", pairs.small(1024), 16, 64),
    "distill_step_v1k_4_passes": Workload(
        "step", "seconds", pairs.small(1024), 16, 64, measured=10, passes=4
    ),
    "distill_step_v32k": Workload("step", "seconds", pairs.small(32_000), 16, 64, measured=6),
    "distill_step_v32k_4_passes": Workload(
        "step", "seconds", pairs.small(32_000), 16, 64, measured=6, passes=4
    ),
    "distill_step_varying": Workload(
        "step",
        "seconds_per_1000_tokens",
        pairs.small(1024, hazard=QUARTER),
        batch=16,
        max_tokens=256,
        measured=8,
    ),
    "loss_v152k": Workload("loss", "seconds", measured=2, warmup=1),
    "rollout_cpu": _rollout("qwen2", varying=False),
    "rollout_cpu_varying": _rollout("qwen2", varying=True),
    "rollout_cpu_llama": _rollout("llama", varying=False),
    "rollout_cpu_varying_llama": _rollout("llama", varying=True),
    "gpu_step_0_5b": _on_gpu("0.5b", "1.5b"),
    "gpu_step_1_5b": _on_gpu("1.5b", "7b"),
}
PROFILED_STEPS = 2
PROFILED = ("distill_step_v1k", "distill_step_v32k", "distill_step_varying")


def time(name: str, protocol: Protocol) -> list[Row]:
    """Both sides' rows of a workload, and what the machine can do at best under the same protocol."""
    workload = WORKLOADS[name]
    protocol = replace(
        protocol,
        warmup=min(protocol.warmup, workload.warmup),
        measured=min(protocol.measured, workload.measured),
    )
    machine = cells.run("machine", workload.spec, threads=protocol.threads)
    if machine["device"] is None:
        print(f"{name}: not run: no CUDA device")
        return [{"side": "not run", "why": "no CUDA device"}]
    if workload.program != "rollout":
        parity.gate()
    if workload.pair is not None:
        pairs.make(workload.pair)
    rows = list(cells.in_turn(workload.program, workload.spec, protocol))
    return [*rows, {"side": "machine", **machine}]


def profile(protocol: Protocol) -> list[Row]:
    """The operators in which our steps spend their time."""
    rows = []
    for name in PROFILED:
        workload = WORKLOADS[name]
        assert workload.pair is not None
        pairs.make(workload.pair)
        told = {**workload.spec, "warmup": protocol.warmup, "measured": PROFILED_STEPS}
        rows.append({"name": name, **cells.run("profile", told, threads=protocol.threads)})
    return rows


def _parts(protocol: Protocol) -> dict[str, Any]:
    return {
        "parity": lambda: list(parity.gate()),
        **{name: partial(time, name, protocol) for name in WORKLOADS},
        "profile": partial(profile, protocol),
    }


def summarise(rows: Rows) -> dict[str, Any]:
    """One row a workload with its memory, the gradients' agreement, and where our time goes."""
    timed = [name for name in WORKLOADS if _cells(rows.get(name, ()), "ours")]
    return {
        "rows": [row for name in timed for row in _summary(name, rows[name])],
        "parity": [dict(row) for row in rows.get("parity", ())],
        "not_run": {
            name: row["why"] for name in WORKLOADS for row in _cells(rows.get(name, ()), "not run")
        },
        "phases": {name: _phases(rows[name]) for name in timed if name in PROFILED},
        "profile": [_profiled(row) for row in rows.get("profile", ())],
    }


def _summary(name: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The row of a workload's time and the row of its memory."""
    workload = WORKLOADS[name]
    ours, peer = _cells(rows, "ours"), _cells(rows, "peer")
    (machine,) = _cells(rows, "machine")
    times, cpu = (_compared(workload.figure, ours, peer, key) for key in ("seconds", "cpu_seconds"))
    limit = _limit(workload, ours, machine["flops"])
    told = {
        "pairs": len(ours),
        **{key: ours[0][key] for key in ("warmup", "measured", "threads")},
        "load_1min": [min(_loads(rows)), max(_loads(rows))],
    }
    memory = _memory(ours, peer)
    return [
        {
            "name": name,
            **times,
            "unit": UNITS[workload.figure],
            **{f"cpu_{key}": cpu[key] for key in ("ours", "peer", "ratio")},
            "limit": _short(limit),
            "limit_share": _short(_better(workload.figure, limit, times["ours"])),
            **told,
        },
        {"name": f"{name}_memory", **memory, "unit": "MB", "pairs": len(ours)},
    ]


def _compared(figure: str, ours: Sequence[Row], peer: Sequence[Row], key: str) -> dict[str, float]:
    """Medians of both sides and of the pairs' ratios, of which more than 1 says that we are better."""
    a, b = ([_figure(figure, cell, key) for cell in side] for side in (ours, peer))
    ratios = [_better(figure, theirs, mine) for mine, theirs in zip(a, b, strict=True)]
    return {
        "ours": _short(median(a)),
        "peer": _short(median(b)),
        "ratio": _short(median(ratios)),
        "ratio_low": _short(min(ratios)),
        "ratio_high": _short(max(ratios)),
    }


def _memory(ours: Sequence[Row], peer: Sequence[Row]) -> dict[str, float | None]:
    """Peak beyond what was resident once the models were loaded: on a GPU what its allocator gave."""
    a, b = (
        [cell["extra_peak_bytes"] for cell in side if cell["extra_peak_bytes"] is not None]
        for side in (ours, peer)
    )
    if not a or not b:
        return {"ours": None, "peer": None, "ratio": None}
    mine, theirs = median(a) / MEGABYTE, median(b) / MEGABYTE
    return {"ours": _short(mine), "peer": _short(theirs), "ratio": _short(theirs / mine)}


def _figure(figure: str, cell: Row, key: str) -> float:
    """A cell's value: the median lap, or a rate over all laps where they make different numbers of tokens."""
    if figure == "seconds":
        return median(cell[key])
    total, tokens = sum(cell[key]), sum(cell["tokens"])
    return tokens / total if figure == "tokens_per_second" else 1000 * total / tokens


def _better(figure: str, other: float, mine: float) -> float:
    """How many times better `mine` is than `other`."""
    return mine / other if figure == "tokens_per_second" else other / mine


def _limit(workload: Workload, ours: Sequence[Row], flops: float) -> float:
    """The figure at which the machine would multiply matrices all the time at its best rate."""
    tokens = fmean(fmean(cell["tokens"]) for cell in ours)
    if workload.pair is None:
        vocabulary = LOSS["vocabulary"]
        heads = {
            f"{side}_head": LOSS[f"{side}_size"] * vocabulary for side in ("student", "teacher")
        }
        return limits.loss(**heads, positions=LOSS["positions"]) / flops
    if workload.program == "rollout":
        work = limits.forward(workload.pair.student, batch=workload.batch, tokens=tokens)
        return tokens * flops / work
    seconds = limits.step(workload.pair, batch=workload.batch, tokens=tokens) / flops
    return seconds if workload.figure == "seconds" else 1000 * seconds / tokens


def _phases(rows: Sequence[Row]) -> dict[str, float]:
    """Median seconds of each phase of our step, and of what lies between the steps' clocks."""
    ours = _cells(rows, "ours")
    steps = [(seconds, phase) for cell in ours for seconds, phase in zip(
        cell["seconds"], cell["phases"], strict=True)]  # fmt: skip
    phases = {key: _short(median(phase[key] for _, phase in steps)) for key in steps[0][1]}
    between = median(seconds - phase["step_seconds"] for seconds, phase in steps)
    return {**phases, "between_steps_seconds": _short(between)}


def _profiled(row: Row) -> dict[str, Any]:
    """The share of a step that each operator takes itself."""
    whole = row["profiled_step_seconds"]
    operators: Sequence[Mapping[str, Any]] = row["operators"]
    return {
        "name": row["name"],
        "operators": {each["operator"]: _short(each["seconds"] / whole) for each in operators},
        "outside_operators": _short(1 - row["operators_seconds"] / whole),
    }


def _cells(rows: Sequence[Row], side: str) -> list[Row]:
    return [row for row in rows if row["side"] == side]


def _loads(rows: Sequence[Row]) -> list[float]:
    return [
        load for side in ("ours", "peer") for row in _cells(rows, side) for load in row["load_1min"]
    ]


def _short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


PARTS = _parts(FULL)
QUICK_PARTS = _parts(QUICK)
