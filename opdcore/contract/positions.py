"""Metrics by position in the response: of a training step, and of a probe."""

from __future__ import annotations

from pydantic import Field

from opdcore.contract.document import Document

# Our choice: a mean over fewer positions, or over a lesser share of the first chunk's, is of a few rollouts.
FEWEST_POSITIONS, REACHED_SHARE = 8, 0.1


class Positions(Document):
    """Means by position chunk; chunk i covers [edges[i], edges[i + 1])."""

    edges: tuple[int, ...] = Field(min_length=2, description="Borders in response tokens.")
    positions: tuple[int, ...] = Field(description="Scored positions in each chunk.")
    values: dict[str, tuple[float | None, ...]] = Field(description="One mean a chunk.")

    def reached(self, key: str) -> tuple[float | None, ...]:
        """A metric's chunks; None for one that only rollouts which wandered off came to."""
        fewest = max(FEWEST_POSITIONS, REACHED_SHARE * self.positions[0])
        return tuple(
            value if count >= fewest else None
            for value, count in zip(self.values[key], self.positions, strict=True)
        )
