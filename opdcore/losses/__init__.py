"""The objectives of on-policy distillation: values in, losses and closed-form gradients out."""

from opdcore.losses.objective import Objective
from opdcore.losses.positions import add_forward, add_reverse, chosen, position_losses

__all__ = ["Objective", "add_forward", "add_reverse", "chosen", "position_losses"]
