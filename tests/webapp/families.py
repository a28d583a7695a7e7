"""Factories: families, and finished runs that were probed before."""

from opdcore.contract.outcome import Outcome
from opdcore.contract.probe import Provenance
from tests.webapp.diagnoses import DIAGNOSE, make_diagnosis, measure
from tests.workers.rows import Scribe, make_running
from webapp.models import Run
from webapp.services import families

GOOD = {
    "effective_overlap": 0.9,
    "top1_agreement": 0.92,
    "hand_off_min": 0.1,
    "teacher_on_failed": 0.8,
    "accuracy_gap": 0.4,
    "reverse_kl": 0.2,
    "overlap_mass_student": 0.97,
}
LOST = GOOD | {
    "effective_overlap": 0.2,
    "top1_agreement": 0.3,
    "hand_off_min": -0.5,
    "reverse_kl": 4.0,
    "overlap_mass_student": 0.4,
}
SAME = GOOD | {"teacher_on_failed": 0.2, "accuracy_gap": 0.01, "reverse_kl": 0.004}


def make_family(project, actor, name="Qwen sums"):
    return families.create(name, project=project, actor=actor)


def finish(run, values, outcome, relation="unknown"):
    """Records a probe of these values and ends the run with that outcome."""
    scribe = Scribe(run, attempt=run.attempt, steps=(0, 20))
    scribe.line = run.last_seq
    measures = {key: measure(value) for key, value in values.items()}
    told = make_diagnosis(measures=measures, provenance=Provenance(relation=relation, stated=True))
    scribe.record(scribe.parsed(told))
    said = Outcome(code=outcome, explanation="As it was.").model_dump(mode="json")
    Run.objects.filter(pk=run.pk).update(status="succeeded", outcome=said)
    run.refresh_from_db()
    return run


def make_finished(family, values, outcome, relation="unknown"):
    run = make_running(project=family.project, stages=[DIAGNOSE, {"kind": "distill", "steps": 20}])
    run.pair.family = family
    run.pair.save()
    return finish(run, values, outcome, relation)


def fill(family, *, good=3, lost=3):
    """So many successes and failures of another pattern, spread a little."""
    for number in range(good):
        shifted = {key: value + 0.01 * number for key, value in GOOD.items()}
        make_finished(family, shifted, "success", "descendant")
    for number in range(lost):
        shifted = {key: value - 0.01 * number for key, value in LOST.items()}
        make_finished(family, shifted, "no_gain")
    return families.recalibrate(family)
