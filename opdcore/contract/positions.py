"""Metrics by position in the response: of a training step, and of a probe."""

from __future__ import annotations

from pydantic import Field

from opdcore.contract.document import Document


class Positions(Document):
    """Means by position chunk; chunk i covers [edges[i], edges[i + 1])."""

    edges: tuple[int, ...] = Field(min_length=2, description="Borders in response tokens.")
    positions: tuple[int, ...] = Field(description="Scored positions in each chunk.")
    values: dict[str, tuple[float | None, ...]] = Field(description="One mean a chunk.")
