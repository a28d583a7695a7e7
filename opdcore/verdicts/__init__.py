"""Verdicts: pure functions from what a probe measured to whether a run will fail, and why.

They know numbers, a goal, an objective and a calibration; no model, no file and no torch.
"""

from __future__ import annotations

from opdcore.verdicts.judgement import judge

__all__ = ["judge"]
