"""A model behind a server: where it answers, and how patient a run is with it. It knows no wire format."""

from __future__ import annotations

from pydantic import Field

from opdcore.contract.document import Document


class Endpoint(Document):
    """A vLLM server, with an API as OpenAI's, that serves one model."""

    base_url: str = Field(
        pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$",
        description="Such as http://host:8000; `/v1/completions` is added.",
    )
    model: str = Field(min_length=1, max_length=200, description="The model's name there.")
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Environment variable of the job that holds the key, never the key itself.",
    )
    timeout_seconds: float = Field(
        default=300.0, gt=0, le=3600, description="Patience with one request."
    )
    patience_seconds: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        description="How long a run waits for a server that does not answer, before it fails.",
    )
    requests_at_once: int = Field(default=32, ge=1, le=1024, description="Requests under way.")
    tokens_a_request: int = Field(
        default=8192, ge=1, le=1 << 20, description="Tokens that one request has scored at most."
    )


class Served(Document):
    """A model that runs in a server's process and not in the job's."""

    endpoint: Endpoint | None = Field(
        default=None,
        description="The server; null: the job starts one of its own and stops it at its end.",
    )
    memory_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="Share of its GPU's memory that the job's own server takes; null: .9, or .4 of one on "
        "which the job trains too.",
    )


class ServedTeacher(Served):
    """A teacher in a server's process, which others may ask too."""

    shared: str | None = Field(
        default=None,
        description="Without endpoint: a folder of this host. Jobs that name the same one share a server: "
        "the first starts it, and it ends with the last.",
    )
    student_top_k: bool = Field(
        default=False,
        description="Whether it is asked for the student's top k too, so that every support can be trained "
        "on. vLLM 0.32 can on a GPU, started with --enable-scale-out.",
    )

    @property
    def is_the_jobs_alone(self) -> bool:
        """Whether no other process can ask it."""
        return self.endpoint is None and self.shared is None
