"""How one side of a pair renders a prompt. It knows no template and no tokenizer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from opdcore.contract.document import Document


class Rendering(Document):
    """System prompt, chat template, thinking mode and stop ids of one side."""

    system_prompt: str | None = Field(
        default=None, description="Put before the conversation; needs a chat template."
    )
    chat_template: Literal["auto", "none"] = Field(
        default="auto",
        description="auto: the model's own template where it has one. none: the raw text.",
    )
    thinking: bool | None = Field(
        default=None,
        description="Thinking mode, for templates that have one; empty: the template's default.",
    )
    extra_stop_ids: tuple[int, ...] = Field(
        default=(), description="Token ids that end a response beside the model's own."
    )
