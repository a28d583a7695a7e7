"""What becomes of a teacher's scores: kept beside the run, or read again in the teacher's place.

It knows no file and no teacher.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from opdcore.contract.document import Document

# A token's k most probable ids and the sampled one, with their logprobs: 4 bytes each.
BYTES_A_TOLD_TOKEN = 8


class Scores(Document):
    """A record of what a teacher says, in a folder that runs share."""

    mode: Literal["keep", "replay"] = Field(
        description="keep: scores and responses are read from the record where it has them, else asked of "
        "the teacher and kept; it tells its top k alone, as a server does. replay: all are read from the "
        "record, and the teacher is neither loaded nor reached."
    )
    folder: str = Field(min_length=1, description="Folder of the records, one a teacher.")
    record: str | None = Field(
        default=None,
        pattern=r"^[0-9a-f]{32}$",
        description="Of replay: the record's name there; null: the only one of that model.",
    )
    most_bytes: int = Field(
        default=16 << 30,
        ge=1 << 20,
        description="Of keep: beyond so many bytes in the folder nothing more is kept.",
    )

    @model_validator(mode="after")
    def _names_what_it_reads(self) -> Self:
        if self.mode == "keep" and self.record is not None:
            raise ValueError("record: a kept record is named by its teacher; leave it out")
        return self


class KeptRecord(Document):
    """A teacher's record after a run that kept its scores."""

    teacher: int = Field(ge=0, description="The teacher's number in the job.")
    record: str = Field(description="The record's name in its folder.")
    tokens: int = Field(
        ge=0, description="Tokens whose scores it holds, of all runs that share it."
    )
    size_bytes: int = Field(ge=0, description="Bytes of their scores.")
    asked_tokens: int = Field(
        ge=0, description="Tokens that the run's first process had scored now."
    )
    found_tokens: int = Field(ge=0, description="Tokens whose scores it found in the record.")
    is_whole: bool = Field(description="Whether nothing that the run asked was left out of it.")


class KeptScores(Document):
    """What a run leaves behind of its teachers' scores: where another run finds them."""

    version: Literal[1] = Field(default=1, description="Version of this format.")
    records: tuple[KeptRecord, ...] = Field(description="One for each teacher that has a record.")

    @property
    def is_whole(self) -> bool:
        """Whether the run can be replayed from them."""
        return all(one.is_whole for one in self.records)


def bytes_a_token(k: int) -> int:
    """Bytes that a token's scores take in a record, entries' heads left out."""
    return BYTES_A_TOLD_TOKEN * (k + 1)
