"""Families of pairs: who belongs to one, and the calibration that its finished runs make.

A run counts once it has both a diagnosis and an outcome; what it then says of the cut-offs,
`opdcore.controls` decides. It knows no page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import orjson
from django.db import IntegrityError, transaction
from django.utils import timezone

from opdcore import calibration as calibrations
from opdcore.contract.calibration import Calibration, ControlName
from opdcore.contract.errors import BadInput
from opdcore.contract.probe import Diagnosis
from opdcore.controls import CUTS, Cut, Finished, calibrated, control_of
from webapp.models import Event, Family, Pair, Project, Run, User
from webapp.permissions import require
from webapp.services import audit

LONGEST_NAME = 120
LARGEST_PACK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class ProbedRun:
    """A finished run of a family that was probed; `control` is None where nothing is certain."""

    run: Run
    finished: Finished
    control: ControlName | None


@transaction.atomic
def create(name: str, *, project: Project, actor: User) -> Family:
    """Makes a family without pairs; it has the laboratory's cut-offs until runs move them."""
    require(actor, "edit", project)
    named = _sound_name(name)
    document = calibrated(named, ()).model_dump(mode="json")
    try:
        with transaction.atomic():
            family = Family.objects.create(
                project=project, created_by=actor, name=named, document=document
            )
    except IntegrityError as error:
        raise _name_taken(named) from error
    audit.record(actor, "create", project=project, about=family, detail={"name": named})
    return family


@transaction.atomic
def choose(pair: Pair, family: Family | None, *, actor: User) -> Pair:
    """Puts the pair into that family, out of the one before it; None: into no family."""
    require(actor, "edit", pair.project)
    _refuse_unfit(pair, family)
    before = pair.family
    if before == family:
        return pair
    pair.family = family
    pair.save(update_fields=["family"])
    verb = "choose_family" if family else "leave_family"
    named = family or before
    detail = {"pair": pair.name, "family": named.name if named else ""}
    audit.record(actor, verb, project=pair.project, about=pair, detail=detail)
    for one in (before, family):
        if one is not None:
            recalibrate(one)
    return pair


@transaction.atomic
def join(pair: Pair, *, actor: User, family: Family | None, name: str = "") -> Pair:
    """Puts the pair into that family, or into a new one where a name is given."""
    if name.strip() and not pair.is_laboratory:
        family = create(name, project=pair.project, actor=actor)
    return choose(pair, family, actor=actor)


@transaction.atomic
def rename(family: Family, name: str, *, actor: User) -> Family:
    """Gives the family, and so its calibration, another name."""
    require(actor, "edit", family.project)
    named = _sound_name(name)
    try:
        with transaction.atomic():
            Family.objects.filter(pk=family.pk).update(name=named)
    except IntegrityError as error:
        raise _name_taken(named) from error
    detail = {"before": family.name, "name": named}
    audit.record(actor, "rename", project=family.project, about=family, detail=detail)
    return recalibrate(family)


@transaction.atomic
def delete(family: Family, *, actor: User) -> None:
    """Deletes the family; its pairs and runs stay, and are judged by the laboratory's again."""
    require(actor, "edit", family.project)
    detail = {"name": family.name, "pairs": family.pairs.count()}
    audit.record(actor, "delete", project=family.project, about=family, detail=detail)
    family.delete()


def import_pack(family: Family, raw: bytes, *, file_name: str, actor: User) -> Family:
    """Takes an exported calibration in; raises BadInput where it is none, and changes nothing then."""
    require(actor, "edit", family.project)
    pack = read_pack(raw, file_name=file_name)
    detail = {"name": pack.name, "family": pack.family, "runs": pack.runs, "file": file_name[:200]}
    return _set_pack(family, pack, actor=actor, verb="import_pack", detail=detail)


def remove_pack(family: Family, *, actor: User) -> Family:
    """Forgets the imported pack: the family's own runs and the laboratory's cut-offs are left."""
    require(actor, "edit", family.project)
    return _set_pack(family, None, actor=actor, verb="remove_pack", detail={})


def read_pack(raw: bytes, *, file_name: str) -> Calibration:
    """The calibration in an uploaded file, checked as one on a disk is."""
    if len(raw) > LARGEST_PACK_BYTES:
        raise BadInput(
            "calibration.too_large",
            f"{file_name} has {len(raw):,} bytes; a pack has at most {LARGEST_PACK_BYTES:,}.",
            remedy="Choose a file that was exported from a family's page.",
            field="file",
        )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pack.json"
        path.write_bytes(raw)
        try:
            return calibrations.read(path)
        except BadInput as error:
            raise _about_upload(error, raw, path=path, file_name=file_name) from error


@transaction.atomic
def recalibrate(family: Family) -> Family:
    """Makes the calibration anew of the runs as they are now; the same runs make the same one."""
    row = Family.objects.select_for_update().get(pk=family.pk)
    own = calibrated(row.name, (one.finished for one in probed_runs(row)))
    row.document = with_pack(own, row.pack).model_dump(mode="json")
    row.save(update_fields=["document", "updated_at"])
    family.refresh_from_db()
    return family


def learn_from(run_id: int) -> None:
    """Recalibrates the family of a run that has ended, if it has one and says anything."""
    run = Run.objects.select_related("pair__family").only("outcome", "pair__family").get(pk=run_id)
    if run.outcome is not None and run.pair.family is not None:
        recalibrate(run.pair.family)


def probed_runs(family: Family) -> list[ProbedRun]:
    """Every run of the family's pairs with an outcome and a diagnosis, oldest first.

    Rescues are left out: a diagnosis says nothing of a student that was mended after it.
    """
    rows = Run.objects.filter(pair__family=family, outcome__isnull=False)
    rows = rows.exclude(relation=Run.Relation.RESCUE).select_related("pair")
    runs = list(rows.defer("snapshot", "notes", "pair__token_map_report").order_by("id"))
    diagnosed = _newest_diagnoses(runs)
    return [_probed(run, diagnosed[run.pk]) for run in runs if run.pk in diagnosed]


def with_pack(own: Calibration, pack: Calibration | None) -> Calibration:
    """Its own controls, and the pack's where it has none; cut-offs that it moved, else the pack's."""
    if pack is None:
        return own
    moved = {
        name: getattr(own.thresholds, name)
        for cut in CUTS
        if decides(cut, own)
        for name in cut.thresholds
    }
    controls = {**pack.controls, **own.controls}
    return own.model_copy(
        update={
            "runs": sum(one.runs for one in controls.values()),
            "controls": controls,
            "thresholds": pack.thresholds.model_copy(update=moved),
        }
    )


def decides(cut: Cut, own: Calibration) -> bool:
    """Whether a family's own runs moved these cut-offs, all of which then hold together."""
    usual = calibrations.laboratory().thresholds
    return any(getattr(own.thresholds, name) != getattr(usual, name) for name in cut.thresholds)


def _probed(run: Run, diagnosis: Diagnosis) -> ProbedRun:
    probe = diagnosis.probe
    finished = Finished(
        relation=probe.provenance.relation,
        outcome=run.outcome["code"] if run.outcome else "unmeasured",
        measures=probe.measures,
    )
    return ProbedRun(run, finished, control_of(finished))


def _newest_diagnoses(runs: Iterable[Run]) -> dict[int, Diagnosis]:
    found = Event.objects.filter(run__in=[run.pk for run in runs], kind="diagnosis")
    newest = dict(found.order_by("seq").values_list("run_id", "payload"))
    return {run: Diagnosis.model_validate(orjson.loads(text)) for run, text in newest.items()}


@transaction.atomic
def _set_pack(
    family: Family, pack: Calibration | None, *, actor: User, verb: str, detail: dict[str, Any]
) -> Family:
    imported = pack.model_dump(mode="json") if pack else None
    Family.objects.filter(pk=family.pk).update(imported=imported, updated_at=timezone.now())
    audit.record(actor, verb, project=family.project, about=family, detail=detail)
    return recalibrate(family)


def _about_upload(error: BadInput, raw: bytes, *, path: Path, file_name: str) -> BadInput:
    """The same refusal with the name that the person knows, and the value that was refused."""
    info = error.info
    field = info.field if info.field != str(path) else None
    found = list(_value_at(raw, field)) if field else []
    told = info.message.replace(str(path), file_name)
    value = f" It is {orjson.dumps(found[0]).decode()[:80]}." if found else ""
    return BadInput(info.code, told + value, remedy=info.remedy, field=field or "file")


def _value_at(raw: bytes, field: str) -> Iterator[Any]:
    """The value at a dotted path of a JSON text; nothing where there is none."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return
    for part in field.split("."):
        if not isinstance(value, dict) or part not in value:
            return
        value = value[part]
    yield value


def _refuse_unfit(pair: Pair, family: Family | None) -> None:
    if family is None:
        return
    if pair.is_laboratory:
        raise BadInput(
            "family.laboratory",
            f"{pair.name} is the laboratory's, whose calibration is built in.",
            remedy="Put a pair of your own into a family.",
            field="family",
        )
    if family.project_id != pair.project_id:
        raise BadInput(
            "family.other_project",
            f"{family.name} belongs to another project.",
            remedy=f"Choose a family of {pair.project.name}.",
            field="family",
        )


def _sound_name(name: str) -> str:
    named = name.strip()
    if not named:
        raise BadInput("family.no_name", "The name is empty.", remedy="Give a name.", field="name")
    if len(named) > LONGEST_NAME:
        raise BadInput(
            "family.long_name",
            f"The name has {len(named)} characters.",
            remedy=f"Give one of at most {LONGEST_NAME}.",
            field="name",
        )
    if named == calibrations.LABORATORY:
        raise BadInput(
            "family.laboratory_name",
            f"{named!r} is what the built-in calibration is called.",
            remedy="Choose another name.",
            field="name",
        )
    return named


def _name_taken(name: str) -> BadInput:
    return BadInput(
        "family.name_taken",
        f"There is already a family named {name!r}.",
        remedy="Choose that family, or another name.",
        field="name",
    )
