"""The job: the document that a run hands to its process. Paths in it are local to that process."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opdcore.contract.calibration import Calibration
from opdcore.contract.document import Document
from opdcore.contract.participant import Participant
from opdcore.contract.recipe import Recipe
from opdcore.contract.serving import Served
from opdcore.contract.teacher import Teacher

ResourceRole = Literal["train", "sample", "teacher"]


class PromptFile(Document):
    """A prompt set as JSON lines, one `Prompt` a line."""

    path: str = Field(min_length=1, description="JSON lines file.")
    sha256: str | None = Field(default=None, description="Hash of its content, checked if given.")


class PromptSets(Document):
    """Prompt sets by role."""

    train: PromptFile = Field(description="Prompts that the student answers to learn.")
    held_out: PromptFile | None = Field(default=None, description="Prompts only for evaluation.")
    teacher_content: PromptFile | None = Field(
        default=None, description="Prompts from the teacher's own post-training."
    )
    outside: PromptFile | None = Field(
        default=None, description="Prompts from elsewhere, mixed in against entropy collapse."
    )


class Resource(Document):
    """What one role of a run may use."""

    devices: tuple[str, ...] = Field(
        default=(),
        description="Such as cuda:0; empty: the CPU. Of several in train each has a process that "
        "takes its share of rollouts, passes and optimizer state.",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; empty: all cores.")


class JudgeEndpoint(Document):
    """A model that the verifier judge asks: a chat endpoint as OpenAI's, which an admin registered."""

    base_url: str = Field(
        pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$",
        description="Such as https://host/v1; `/chat/completions` is added.",
    )
    model: str = Field(min_length=1, max_length=200, description="The model's name there.")
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable of the job that holds the key, never the key itself.",
    )
    timeout_seconds: float = Field(
        default=60.0, gt=0, le=600, description="Patience with one request."
    )
    requests_at_once: int = Field(default=8, ge=1, le=256, description="Requests under way.")


class StartCheckpoint(Document):
    """Weights that the student starts from instead of its own."""

    path: str = Field(min_length=1, description="Directory of a checkpoint or an output.")
    sha256: str | None = Field(default=None, description="Hash of its weights, checked if given.")


class Job(Document):
    """Everything that one execution of a run needs; the same job in the same folder resumes."""

    version: Literal[1] = Field(default=1, description="Version of this format.")
    run_id: str = Field(min_length=1, max_length=64, description="The run's public id.")
    attempt: int = Field(default=1, ge=1, description="Which execution of the run this is.")
    student: Participant = Field(description="The model being trained.")
    teachers: tuple[Teacher, ...] = Field(min_length=1, description="The frozen references.")
    writer: Participant | None = Field(
        default=None, description="Another model whose responses a cold start learns."
    )
    prompt_sets: PromptSets = Field(description="Prompt sets by role.")
    recipe: Recipe = Field(description="What is done.")
    resources: dict[ResourceRole, Resource] = Field(
        default_factory=dict, description="Devices, memory and threads by role."
    )
    sampler: Served | None = Field(
        default=None,
        description="The server that samples the student's responses in training, with its weights "
        "given to it before each step; null: the job samples them.",
    )
    start: StartCheckpoint | None = Field(default=None, description="Where the student starts.")
    judge: JudgeEndpoint | None = Field(
        default=None, description="Whom the verifier judge asks; no other verifier needs it."
    )
    response_cache: str | None = Field(
        default=None,
        description="Folder in which a model's responses are kept for other runs; null: nowhere.",
    )
    lab_version: str | None = Field(
        default=None, description="Set where the pair is the laboratory's."
    )
    calibration: Calibration | None = Field(
        default=None,
        description="Of the pair's family, for its verdicts and its monitor; null: the laboratory's.",
    )

    def trains_on(self, role: ResourceRole) -> bool:
        """Whether a role has a device that is trained on too."""
        named = [
            set(self.resources[one].devices) for one in ("train", role) if one in self.resources
        ]
        return len(named) == 2 and not named[0].isdisjoint(named[1])
