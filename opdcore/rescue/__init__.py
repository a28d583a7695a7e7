"""Rescue: from a verdict, a recipe and a run's history to a recipe that should work, or to what helps instead.

Pure functions on documents and numbers: no model, no file, no torch. They see what was measured and
never why a run was made to fail.
"""

from __future__ import annotations

from opdcore.rescue.depth import FIRST_STEPS, parted_tokens, sound_tokens
from opdcore.rescue.plan import plan
from opdcore.rescue.proof import Proof, prove

__all__ = ["FIRST_STEPS", "Proof", "parted_tokens", "plan", "prove", "sound_tokens"]
