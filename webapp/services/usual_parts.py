"""What stands in the form of a new run before anybody chooses: parts that belong together.

Every part is a public id by the name of its field. It knows no form.
"""

from __future__ import annotations

from collections.abc import Mapping

from webapp.models import Pair, Project, PromptSet, Recipe, Run, User
from webapp.services import scores
from webapp.services.asked_parts import AskedParts
from webapp.services.resources import GIB, parsed

Parts = dict[str, str]

BESIDE_A_PAIR = ("train", "held_out", "recipe")


def of_user(user: User, project: Project) -> Parts:
    """Those of the user's own last run there, else a laboratory pair's."""
    mine = Run.objects.filter(project=project, created_by=user)
    sets = ("train_set", "held_out_set", "teacher_content_set", "outside_set", "writer", "judge")
    last = mine.select_related("pair", "recipe", *sets).first()
    return of_run(last) if last else of_laboratory(project)


def of_run(run: Run) -> Parts:
    """The run's own."""
    return {
        "pair": run.pair.public_id,
        "train": run.train_set.public_id,
        "held_out": run.held_out_set.public_id if run.held_out_set else "",
        "recipe": run.recipe.public_id,
        **{role: one.public_id for role, one in AskedParts.of_run(run).given()},
        **_devices(run),
        **({"keep_scores": "on"} if scores.of_run(run) == scores.KEEP else {}),
    }


def _devices(run: Run) -> Parts:
    """What it asked of the devices, by the fields of the form."""
    asked = parsed(run.resources)
    of_train = asked.get("train")
    kind = of_train.kind or "" if of_train else ""
    threads = of_train.threads if of_train else None
    found = {"device": kind} | ({"threads": str(threads)} if threads else {})
    for role, need in asked.items():
        if need.served:
            found[f"{role}_served"] = need.endpoint or "own"
        if not need.count:
            continue
        found[f"{role}_devices"] = str(need.count)
        if need.memory_bytes:
            found[f"{role}_memory"] = f"{need.memory_bytes / GIB:g}"
    return found


def of_laboratory(project: Project) -> Parts:
    """A laboratory pair with the recipe and the prompt sets of its family, or the first of each."""
    recipes = Recipe.objects.filter(project=project).newest()
    pairs = Pair.objects.filter(project=project).order_by("-is_laboratory", "-name")
    pair = pairs.filter(name__in=recipes.values("name")).first() or pairs.first()
    chosen = {"pair": pair.public_id} if pair else {}
    return chosen | beside(project, pair)


def moved(project: Project, asked: Mapping[str, str]) -> Parts:
    """The parts beside a pair after it was changed from `parts_of` to `pair`.

    What stood there for the one before makes room for the new one's; what somebody chose stays, and
    so does everything where the new pair is not the laboratory's.
    """
    pairs = Pair.objects.filter(project=project)
    before, after = (
        pairs.filter(public_id=asked.get(name, ""), is_laboratory=True).first()
        for name in ("parts_of", "pair")
    )
    stood = {name: asked.get(name, "") for name in BESIDE_A_PAIR}
    if after is None:
        return stood
    old = beside(project, before) if before else {}
    kept = {name: value for name, value in stood.items() if value != old.get(name, "")}
    return stood | beside(project, after) | kept


def beside(project: Project, pair: Pair | None) -> Parts:
    """The recipe and prompt sets of the pair's family, such as `Laboratory, sums: another style`."""
    named = pair.name.partition(":")[0] if pair else ""
    sets = PromptSet.objects.filter(project=project).ready()
    own = sets.filter(name__icontains=named.rpartition(" ")[2])
    sets = own if own.exists() else sets
    held_out = sets.filter(name__icontains="held").first()
    recipes = Recipe.objects.filter(project=project).newest()
    found = {
        "train": sets.exclude(pk=held_out.pk).first() if held_out else sets.first(),
        "held_out": held_out,
        "recipe": recipes.filter(name=named).first() or recipes.first(),
    }
    return {name: row.public_id for name, row in found.items() if row is not None}
