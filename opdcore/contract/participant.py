"""A model that takes part in a job: where its weights are, and how its prompts are rendered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from opdcore.contract.document import Document
from opdcore.contract.rendering import Rendering


class LocalModel(Document):
    """A checkpoint in a local directory."""

    kind: Literal["local"] = "local"
    path: str = Field(min_length=1, description="Directory with config.json and safetensors.")


class HubModel(Document):
    """A checkpoint on the Hugging Face hub, pinned to a commit."""

    kind: Literal["hub"] = "hub"
    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name.")
    revision: str = Field(min_length=1, description="Commit, tag or branch.")


ModelSource = Annotated[LocalModel | HubModel, Field(discriminator="kind")]


class Participant(Document):
    """A model and how its side of the conversation is rendered."""

    model: ModelSource = Field(description="Where the weights are.")
    rendering: Rendering = Field(default_factory=Rendering, description="How prompts are rendered.")
