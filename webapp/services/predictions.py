"""What a run was predicted to take when it was launched, beside what it was measured to take.

A prediction is kept as it was made; later knowledge does not change it. It makes no estimate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from opdcore.contract.document import Document
from opdcore.estimate import Row
from webapp.models import Run
from webapp.services.estimates import Needs


class Amount(Document):
    """One line of a breakdown."""

    label: str = Field(description="What it is for.")
    amount: float = Field(description="In bytes.")


class Prediction(Document):
    """An estimate as the launch showed it."""

    peak_memory_bytes: int = Field(description="Of each device that trains; of a CPU the process'.")
    memory: tuple[Amount, ...] = Field(description="What that memory is for.")
    disk_bytes: int = Field(description="The most that the run's folder holds.")
    disk: tuple[Amount, ...] = Field(description="What that disk is for.")
    seconds: float = Field(description="From its start to its end.")
    device: str = Field(description="What it was made for.")
    basis: str = Field(description="What the seconds rest on.")


@dataclass(frozen=True, slots=True)
class Compared:
    """One quantity of a run; `measured` is None until something was."""

    label: str
    predicted: float
    measured: float | None
    is_bytes: bool

    @property
    def shares(self) -> tuple[float, float]:
        """Predicted and measured in hundredths of the larger one."""
        most = max(self.predicted, self.measured or 0.0) or 1.0
        return 100 * self.predicted / most, 100 * (self.measured or 0.0) / most

    @property
    def ratio(self) -> float | None:
        """Measured by predicted."""
        if self.measured is None or not self.predicted:
            return None
        return self.measured / self.predicted


def prediction(needs: Needs) -> Prediction:
    """What a run's row keeps of the needs."""
    return Prediction(
        peak_memory_bytes=needs.memory.peak_memory_bytes,
        memory=_amounts(needs.memory.memory),
        disk_bytes=needs.disk_bytes,
        disk=_amounts(needs.disk.disk),
        seconds=needs.seconds,
        device=needs.device,
        basis=needs.basis,
    )


def of(run: Run) -> Prediction | None:
    """As it was made at the launch; None where none was."""
    return None if run.predicted is None else Prediction.model_validate(run.predicted)


def compared(run: Run) -> list[Compared]:
    """Each predicted quantity beside the measured one; empty without a prediction."""
    made = of(run)
    if made is None:
        return []
    return [
        Compared("Peak memory", made.peak_memory_bytes, run.peak_memory_bytes, is_bytes=True),
        Compared("Disk", made.disk_bytes, run.disk_bytes, is_bytes=True),
        Compared("Wall time", made.seconds, run.seconds or None, is_bytes=False),
    ]


def _amounts(rows: Sequence[Row]) -> tuple[Amount, ...]:
    return tuple(Amount(label=row.label, amount=row.amount) for row in rows)
