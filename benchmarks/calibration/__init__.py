"""The calibration study: do verdicts foretell what becomes of a run, and does the monitor see it in time?

Thresholds are set on one task family and architecture and scored on the other. Every triple is drawn
before any run is made, trained for real, and kept, so that the study can be stopped and gone on with.
"""

from benchmarks.calibration.study import PARTS, summarise

__all__ = ["PARTS", "summarise"]
