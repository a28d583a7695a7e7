"""The engine's matrix: every objective with every kind of teacher, sampler and tuning, run or refused.

A sound cell makes two steps on the laboratory's pair; an unsound one is refused with its code. Cells behind
servers need `make vllm` and share two servers. It knows the contract's documents and the engine's door.
"""

from __future__ import annotations

import itertools
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import opdcore
from benchmarks.records import ROOT, Row, Rows
from opdcore.contract.errors import StillroomError
from opdcore.contract.job import Job
from opdcore.lab import record
from opdcore.serving import widening
from opdcore.serving.server import Server, Serving

Tuning = Literal["full", "lora"]
Sampler = Literal["in the job", "server"]
Document = dict[str, Any]

STEPS = 2
LAB = record.shipped("sums")
OBJECTIVES: dict[str, Document] = {
    "sampled token": {"form": "sampled"},
    "top k of the student": {"form": "top_k", "support": "student"},
    "top k of the teacher": {"form": "top_k", "support": "teacher"},
    "top k of the teacher, forward, tail bucket": {
        "form": "top_k", "support": "teacher", "divergence": "forward", "normalisation": "tail_bucket",
    },
    "intersection, renormalised": {
        "form": "top_k", "support": "intersection", "normalisation": "renormalised",
    },
    "full vocabulary": {"form": "full"},
}  # fmt: skip
RULE = {"source": "rule", "rule": "Take care.", "form": "{privileged} {prompt}"}
STUDENT, TEACHER = LAB / "student", LAB / "teacher"


def _local(folder: Path, **said: Any) -> Document:  # noqa: ANN401 - a document's values
    return {"model": {"kind": "local", "path": str(folder)}, **said}


# Only vLLM's second model runner tells it, which a CPU has by interpreting its kernels.
MORE = "server that tells the student's top k"
SECOND_RUNNER = ROOT / "tests" / "vllm" / "second_runner"
TEACHERS: dict[str, tuple[Document, ...]] = {
    "one": (_local(TEACHER),),
    "two by tag": (_local(TEACHER, tags=["new-skill"]), _local(STUDENT, tags=["known"])),
    "two on every prompt": (_local(TEACHER, weight=3.0), _local(STUDENT)),
    "itself under a rule, frozen": (_local(STUDENT, privileged=RULE),),
    "itself under a rule, average": (_local(STUDENT, privileged=RULE, follows="average"),),
    "itself under a rule, live": (_local(STUDENT, privileged=RULE, follows="student"),),
    "server": (_local(TEACHER, served={}),),
    MORE: (_local(TEACHER, served={"student_top_k": True}),),
}


@dataclass(frozen=True)
class Cell:
    """One combination."""

    objective: str
    teacher: str
    sampler: Sampler
    tuning: Tuning

    @property
    def is_served(self) -> bool:
        """Whether it needs a server."""
        return "server" in (self.teacher, self.sampler) or self.teacher == MORE

    @property
    def refusal(self) -> str | None:
        """The code with which it is refused, by the documentation; None where it is sound."""
        untold = {"top k of the student", "full vocabulary"}
        if self.teacher == MORE:
            untold -= {"top k of the student"}
        if self.teacher in ("server", MORE) and self.objective in untold:
            return "recipe.served_teacher"
        if self.teacher == "itself under a rule, average" and self.tuning == "lora":
            return "teachers.average_of_adapters"
        return None


@dataclass(frozen=True)
class Endpoints:
    """Where the two servers answer, as documents; None where there are none."""

    teacher: Document | None = None
    sampler: Document | None = None


def cells() -> Iterator[Cell]:
    """Every combination."""
    samplers: tuple[Sampler, ...] = ("in the job", "server")
    tunings: tuple[Tuning, ...] = ("full", "lora")
    for objective, teacher, sampler, tuning in itertools.product(
        OBJECTIVES, TEACHERS, samplers, tunings
    ):
        yield Cell(objective, teacher, sampler, tuning)


def job(cell: Cell, endpoints: Endpoints) -> Job:
    """The cell as a job of two steps."""
    teachers = [
        one
        | ({"served": one["served"] | {"endpoint": endpoints.teacher}} if "served" in one else {})
        for one in TEACHERS[cell.teacher]
    ]
    stage = {
        "kind": "distill", "steps": STEPS, "prompts_per_step": 8, "rollouts_per_prompt": 1, "k": 8,
        "learning_rate": 1e-3, "weight_decay": 0.0, "max_prompt_tokens": 96, "max_response_tokens": 64,
        "checkpoint_steps": STEPS, "evaluate_steps": 0, "trace_steps": STEPS, "tuning": cell.tuning,
        "lora_rank": 4, **OBJECTIVES[cell.objective],
    }  # fmt: skip
    document: Document = {
        "run_id": "cell",
        "student": _local(STUDENT),
        "teachers": teachers,
        "prompt_sets": {"train": {"path": str(LAB / "train.jsonl")}},
        "recipe": {"name": "cell", "evaluation": {"verifier": "none"}, "stages": [stage]},
        "resources": {"train": {"threads": 1}},
    }
    if cell.sampler == "server":
        document["sampler"] = {"endpoint": endpoints.sampler}
    return Job.model_validate(document)


def tried(cell: Cell, endpoints: Endpoints) -> Row:
    """What came of a cell: two finite losses, or the code of its refusal."""
    row: Document = dict(cell.__dict__)
    with tempfile.TemporaryDirectory() as folder:
        try:
            events = list(opdcore.run(job(cell, endpoints), Path(folder) / "run"))
        except StillroomError as error:
            return row | {"refused": error.info.code}
    values = [event.payload.values for event in events if event.kind == "metrics"]
    losses = [one["loss"] for one in values]
    sound = len(losses) == STEPS and all(one is not None and isfinite(one) for one in losses)
    differences = [one["sampler_logprob_difference"] or 0.0 for one in values]
    return row | {"refused": None, "sound": sound, "sampler_difference": max(differences)}


def measured() -> list[Row]:
    """All cells but those of the next part, those behind servers on two that are shared."""
    return _measured([cell for cell in cells() if cell.teacher != MORE])


def measured_more() -> list[Row]:
    """Those whose teacher tells the student's top k."""
    told = {"PYTHONPATH": str(SECOND_RUNNER), "VLLM_USE_V2_MODEL_RUNNER": "1"}
    with patch.dict(os.environ, told):
        return _measured([cell for cell in cells() if cell.teacher == MORE])


def _measured(asked: list[Cell]) -> list[Row]:
    more = any(cell.teacher == MORE for cell in asked)
    with _servers(student_top_k=more) as endpoints:
        rows = []
        for cell in asked:
            rows.append(tried(cell, endpoints))
            print(json.dumps(rows[-1]), flush=True)
        return rows


@contextmanager
def _servers(*, student_top_k: bool) -> Iterator[Endpoints]:
    with tempfile.TemporaryDirectory() as home, ExitStack() as stack:
        found = {}
        for name, folder in (("teacher", TEACHER), ("student", STUDENT)):
            wide = widening.widen_folder(folder, Path(home) / name)
            serving = Serving(
                wide,
                longest=256,
                takes_weights=name == "student",
                student_top_k=student_top_k and name == "teacher",
            )
            found[name] = stack.enter_context(Server(serving, Path(home) / f"{name}.log"))
        for server in found.values():
            for _ in server.readying():
                pass
        told = {name: one.endpoint.model_dump() for name, one in found.items()}
        yield Endpoints(told["teacher"], told["student"])


def summarise(rows: Rows) -> dict[str, Any]:
    """How many cells ran, were refused as documented, and were not as documented."""
    found = [row for part in rows.values() for row in part]
    as_told = [
        row for row in found
        if row["refused"] == Cell(*(row[k] for k in ("objective", "teacher", "sampler", "tuning"))).refusal
    ]  # fmt: skip
    served = [
        row["sampler_difference"]
        for row in found
        if row["sampler"] == "server" and not row["refused"]
    ]
    return {
        "cells": len(found),
        "sound": sum(bool(row.get("sound")) for row in found),
        "refused": sum(row["refused"] is not None for row in found),
        "unlike_the_documentation": len(found) - len(as_told),
        "largest_sampler_difference_nats": max(served, default=None),
    }


PARTS = {"cells": measured, "student-top-k": measured_more}
