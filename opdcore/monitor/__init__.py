"""The monitor: says of a live run why it is failing, from the numbers that each step has anyway.

It keeps windows over the series and knows numbers alone; what a run does about it is not its matter.
"""

from __future__ import annotations

from opdcore.monitor.health import Monitor, is_failing

# A collapse is called within so many steps of its onset (measured on the laboratory's).
CALLED_WITHIN = 15

__all__ = ["CALLED_WITHIN", "Monitor", "is_failing"]
