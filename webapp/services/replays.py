"""A run made once more without its teacher, from the scores that the first one kept.

It knows no file: the worker that kept the scores has them.
"""

from __future__ import annotations

from django.db import transaction

from webapp.models import Run, User
from webapp.permissions import require
from webapp.services import runs, scores


@transaction.atomic
def replay(run: Run, *, actor: User, name: str = "") -> Run:
    """Launches the same pair, recipe and prompts, with the record in the teacher's place.

    It goes to the worker that has the record. Raises BadInput where the run has left none.
    """
    require(actor, "launch", run.project)
    child = runs.again(
        run,
        actor=actor,
        name=name or f"{run.name[:104]} replayed",
        relation=Run.Relation.REPLAY,
        # Nobody is asked, so the teacher needs no device and no server.
        resources={role: one for role, one in run.resources.items() if role != "teacher"},
        kept_scores=scores.replayed(run),
    )
    child.host = run.host
    child.save(update_fields=["host"])
    return child
