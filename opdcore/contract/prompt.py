"""A prompt: one row of a prompt set. It knows no file format and no tokenizer."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from opdcore.contract.document import Document

Role = Literal["system", "user", "assistant"]


class Message(Document):
    """One turn of a chat."""

    role: Role = Field(description="Who speaks.")
    content: str = Field(min_length=1, description="What is said.")


class Prompt(Document):
    """One input of a prompt set: a raw prompt or chat messages, and what is known about it."""

    prompt: str | None = Field(default=None, description="Raw text, exclusive with messages.")
    messages: tuple[Message, ...] | None = Field(
        default=None, description="Chat turns, exclusive with prompt."
    )
    answer: str | None = Field(default=None, description="Reference answer for the verifier.")
    tests: tuple[str, ...] = Field(
        default=(),
        description="Unit tests of a code task in Python, such as `assert add(1, 2) == 3`, run in "
        "order over the names that the response's code defines.",
    )
    privileged: str | None = Field(
        default=None, description="Text that only a privileged teacher sees."
    )
    response: str | None = Field(default=None, description="Human demonstration.")
    tags: tuple[str, ...] = Field(default=(), description="Labels for routing and filtering.")

    @property
    def question(self) -> str:
        """What is asked, as plain text: each turn of a chat after its role."""
        if self.messages is None:
            return self.prompt or ""
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in self.messages)

    @model_validator(mode="after")
    def _one_text(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages, not both and not neither")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is empty")
        if self.messages is not None and not self.messages:
            raise ValueError("messages is empty")
        return self
