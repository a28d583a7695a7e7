"""Factories: failing runs with events, checkpoints and evaluations, as a job would have left them."""

import orjson
from django.core.files.base import ContentFile
from django.core.files.storage import storages

from opdcore.contract.events import Evaluated, Health, metrics
from opdcore.contract.outcome import judge
from opdcore.contract.positions import Positions
from tests.webapp.diagnoses import make_evidence, make_verdict
from tests.workers.rows import Scribe, make_running
from webapp.models import Artifact, ModelRoot, Run

PROMPTS = 40
POOR, GOOD = [0.0] * 30 + [1.0] * 10, [1.0] * 38 + [0.0] * 2


def make_failing(
    project, actor, *, code="STALLED_MISMATCH", stages=None, status="failed", **columns
):
    """A run that its monitor called failing at step 12 of 20, after a good step 10."""
    stages = stages or [{"kind": "distill", "steps": 20, "prompts_per_step": 8}]
    run = make_running(project=project, stages=stages, created_by=actor)
    ModelRoot.objects.get_or_create(project=project, path="/models")
    scribe = Scribe(run)
    scribe.record(
        scribe.parsed(Health(verdict=make_verdict("HEALTHY", "go")), step=10),
        scribe.parsed(Health(verdict=make_verdict(code, evidence=(make_evidence(),))), step=12),
        scribe.parsed(Health(verdict=make_verdict(code, confidence="high")), step=14),
    )
    run.refresh_from_db()
    for name, value in {
        "status": status,
        "step": 14,
        "stage_index": 0,
        "steps_total": 20,
        **columns,
    }.items():
        setattr(run, name, value)
    run.save()
    return run


def tell(run, payload, step):
    """Records a line as a job would, whatever has become of the run."""
    scribe = Scribe(run)
    scribe.line = 100 + run.events.count()
    Run.objects.filter(pk=run.pk).update(status="running")
    scribe.record(scribe.parsed(payload, step=step))
    Run.objects.filter(pk=run.pk).update(status=run.status)


def tell_positions(run, step, overlap, divergence=(0.1, 0.1, 0.1)):
    values = {"effective_overlap": overlap, "reverse_kl": divergence}
    tell(run, Positions(edges=(0, 8, 16, 24), positions=(40, 40, 40), values=values), step)


def tell_overlap(run, values, **others):
    for step, value in enumerate(values, start=1):
        tell(run, metrics({"effective_overlap": value, **others}), step)


def tell_accuracy(run, step, accuracy):
    values = {"accuracy": accuracy, "accuracy_low": None, "accuracy_high": None}
    told = Evaluated(
        role="student", prompts=4, samples_per_prompt=1, verifier="exact", values=values
    )
    tell(run, told, step)


def keep_file(run, key, content=b"weights", *, kind="checkpoint"):
    place = f"{run.project.public_id}/{run.public_id}/1/{key}"
    stored = storages["artifacts"].save(place, ContentFile(content))
    return Artifact.objects.create(
        run=run,
        attempt=1,
        kind=kind,
        key=key,
        storage_key=stored,
        sha256="a" * 64,
        size_bytes=len(content),
    )


def keep_checkpoint(run, step, *, stage=0):
    return keep_file(run, f"checkpoints/stage-{stage:02d}-step-{step:07d}/model.safetensors")


def keep_scores(run, name, accuracy):
    told = {"accuracy": accuracy, "response_tokens": [1.0] * len(accuracy)}
    return keep_file(run, f"evaluations/{name}.json", orjson.dumps(told), kind="evaluation")


def end_well(run, *, before=POOR, after=GOOD):
    """The run succeeded, with its evaluations kept and its outcome judged."""
    keep_scores(run, "student-00-0000000", before)
    keep_scores(run, "student-00-0000020", after)
    keep_scores(run, "teacher", [1.0] * PROMPTS)
    run.outcome = judge(before, after, [1.0] * PROMPTS).model_dump(mode="json")
    run.status = "succeeded"
    run.save()
