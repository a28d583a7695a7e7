"""Who teaches what: the loaded teachers of a run, and which of them score a prompt.

A prompt is scored by every teacher without tags and by those with one of its own tags. It knows no
objective and no training step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from opdcore import models
from opdcore.batches import Batch, cut
from opdcore.contract.errors import BadInput
from opdcore.contract.job import Job
from opdcore.contract.prompt import Prompt
from opdcore.contract.serving import ServedTeacher
from opdcore.contract.teacher import Teacher
from opdcore.inspection import inspect
from opdcore.models import LoadedModel
from opdcore.models.loading import resolve
from opdcore.pool import Pool
from opdcore.privileged import read_with
from opdcore.prompt_ids import PromptIds
from opdcore.rendering import Renderer
from opdcore.rollouts import Rollout
from opdcore.serving.model import ServedModel
from opdcore.serving.needs import teacher_size
from opdcore.serving.server import Serving
from opdcore.serving.servers import Servers
from opdcore.teachers import records
from opdcore.teachers.panel import Panel
from opdcore.teachers.recorded import AnyModel, RecordedModel


@dataclass(frozen=True)
class Member:
    """A teacher and what the job says of it; `model` may be the student's own network, or not be loaded."""

    model: AnyModel
    said: Teacher

    def reads(self, prompt: Prompt) -> Prompt:
        """The prompt as this teacher reads it, before it is rendered."""
        return prompt if self.said.privileged is None else read_with(self.said.privileged, prompt)

    def prompt_ids(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """Token ids of what it reads, in order."""
        read = [self.reads(prompt) for prompt in prompts]
        return [one.ids for one in self.model.renderer.render_many(read)]

    def scores(self, prompt: Prompt) -> bool:
        """Whether it has a say on the prompt."""
        return not self.said.tags or not set(self.said.tags).isdisjoint(prompt.tags)


@dataclass(frozen=True)
class Teachers:
    """All teachers of a run, in the job's order."""

    members: tuple[Member, ...]

    @property
    def recorded(self) -> list[tuple[int, RecordedModel]]:
        """Those with a record, by number."""
        found = ((index, one.model) for index, one in enumerate(self.members))
        return [(index, model) for index, model in found if isinstance(model, RecordedModel)]

    @property
    def only(self) -> LoadedModel:
        """The model of the one loaded teacher that a caller was promised."""
        (member,) = self.members
        assert isinstance(member.model, LoadedModel)
        return member.model

    def of(self, prompt: Prompt) -> tuple[int, ...]:
        """Who scores the prompt, by number; empty where nobody does."""
        return tuple(index for index, one in enumerate(self.members) if one.scores(prompt))

    def lead(self, prompt: Prompt) -> int:
        """The one who answers the prompt where one must: the first of those with the most weight."""
        return max(self.of(prompt), key=lambda index: self.members[index].said.weight)

    def answerer(self, prompt: Prompt) -> Member:
        """The teacher who leads the prompt."""
        return self.members[self.lead(prompt)]

    def panel(self, indices: tuple[int, ...]) -> Panel:
        """Those teachers as one."""
        chosen = [self.members[index] for index in indices]
        total = sum(one.said.weight for one in chosen)
        return Panel(
            numbers=indices,
            models=tuple(one.model for one in chosen),
            shares=tuple(one.said.weight / total for one in chosen),
        )

    def batches(
        self,
        pool: Pool,
        ids: PromptIds,
        rows: Sequence[int],
        rollouts: Sequence[Rollout],
        *,
        tokens: int,
        parts: int = 1,
    ) -> list[tuple[Panel, Batch]]:
        """Batches of rollouts that the same teachers score; each rollout answers the row at its place."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for place, row in enumerate(rows):
            groups.setdefault(self.of(pool[row]), []).append(place)
        found = []
        for indices, places in groups.items():
            sides = [[ids[row][side] for row in rows] for side in (0, *(1 + i for i in indices))]
            panel = self.panel(indices)
            batches = cut(rollouts, sides, tokens=tokens, among=places, parts=parts)
            found += [(panel, batch) for batch in batches]
        return found

    def by_lead(self, pool: Pool, rows: Sequence[int]) -> dict[int, list[int]]:
        """The rows by the number of the teacher who answers them."""
        found: dict[int, list[int]] = {}
        for row in rows:
            found.setdefault(self.lead(pool[row]), []).append(row)
        return found

    def text(self, prompt: Prompt) -> str:
        """The prompt as the teacher who answers it reads it."""
        lead = self.answerer(prompt)
        return lead.model.renderer.text(lead.reads(prompt))

    def refuse_unusable(self, prompts: Sequence[Prompt], *, field: str) -> None:
        """Raises BadInput for the first prompt that no teacher scores, or that lacks what one reads."""
        for row, prompt in enumerate(prompts):
            place, scoring = f"{field}, row {row + 1}", self.of(prompt)
            if not scoring:
                raise self._unscored(prompt, place)
            telling = [index for index in scoring if self.members[index].said.tells_top_k]
            if telling and len(scoring) > 1:
                knob = "served" if self.members[telling[0]].said.served else "scores"
                raise BadInput(
                    "teachers.served_together",
                    "Several teachers score the prompt, and one behind a server or with a record tells its "
                    "top k alone, so that it cannot be put together with another.",
                    remedy="Give the teachers tags that no prompt shares, or load them all by the job "
                    "without keeping their scores.",
                    field=f"teachers.{telling[0]}.{knob}, {place}",
                )
            for index in scoring:
                try:
                    self.members[index].reads(prompt)
                except BadInput as error:
                    told = error.info
                    raise BadInput(
                        told.code, told.message, remedy=told.remedy, field=place
                    ) from error

    def _unscored(self, prompt: Prompt, place: str) -> BadInput:
        tags = ", ".join(prompt.tags) or "none"
        known = ", ".join(sorted({tag for one in self.members for tag in one.said.tags}))
        return BadInput(
            "teachers.nobody_scores",
            f"No teacher scores the prompt: its tags are {tags}, and the teachers are for {known}.",
            remedy="Give one teacher no tags, so that it scores every prompt, or tag the prompt.",
            field=place,
        )


def load(job: Job, student: LoadedModel, servers: Servers, *, device: torch.device) -> Teachers:
    """Loads every teacher, or opens the server that it is behind, which may not be ready yet.

    Raises BadInput where one that follows the student is another model.
    """
    members = []
    for index, said in enumerate(job.teachers):
        field = f"teachers.{index}"
        if said.follows != "frozen" and (said.model != job.student.model or said.served):
            raise BadInput(
                "teachers.follows_other",
                f"It follows the student ({said.follows}) and is another model, or behind a server.",
                remedy="Name the student's own model without a server, or set follows to frozen.",
                field=f"{field}.follows",
            )
        if said.scores is not None and said.is_replayed:
            model: AnyModel = records.replay(said, said.scores, device=device, field=field)
        else:
            model = _asked(job, index, student, servers, device=device)
        members.append(Member(model, said))
    return Teachers(tuple(members))


def _asked(
    job: Job, index: int, student: LoadedModel, servers: Servers, *, device: torch.device
) -> AnyModel:
    """A teacher that is there to be asked, with a record of what it says where that is kept."""
    said, field = job.teachers[index], f"teachers.{index}"
    model: LoadedModel | ServedModel
    if said.served is not None:
        model = _served(job, index, said.served, servers, device=device)
    elif said.follows == "student":
        renderer = Renderer.from_folder(student.folder, said.rendering)
        model = LoadedModel(student.network, renderer, student.card, student.folder)
    else:
        model = models.load(said, device=device, field=field)
        model.model.requires_grad_(requires_grad=False)
    if said.scores is None:
        return model
    return records.keep(model, said, said.scores, job=job, device=device)


def _served(
    job: Job, index: int, served: ServedTeacher, servers: Servers, *, device: torch.device
) -> ServedModel:
    said = job.teachers[index]
    folder = resolve(said.model, field=f"teachers.{index}")
    card = inspect(folder)
    size = teacher_size(job.recipe, card)
    serving = Serving(
        folder,
        longest=size.longest,
        most_logprobs=size.most_logprobs,
        devices=tuple(job.resources["teacher"].devices) if "teacher" in job.resources else (),
        student_top_k=served.student_top_k,
        beside=job.trains_on("teacher"),
        memory_share=served.memory_share,
    )
    name = "teacher" if len(job.teachers) == 1 else f"teacher {index + 1}"
    renderer = Renderer.from_folder(folder, said.rendering)
    return servers.open(
        served.endpoint, serving, renderer, card, name=name, device=device, shared=served.shared
    )
