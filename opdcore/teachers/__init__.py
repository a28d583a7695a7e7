"""The teachers of a run: who scores which prompt, with what weight, and what they say together."""

from opdcore.teachers.panel import Panel, Scoring
from opdcore.teachers.recorded import AnyModel
from opdcore.teachers.roster import Member, Teachers, load

__all__ = ["AnyModel", "Member", "Panel", "Scoring", "Teachers", "load"]
