"""The processes of one run: one by itself, or one a device, of which the first leads the others."""

from opdcore.processes.alone import Alone, Processes

__all__ = ["Alone", "Processes"]
