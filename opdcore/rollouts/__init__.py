"""Rollouts: responses sampled from a model, with the log-probability of each token."""

from opdcore.rollouts.rollout import Rollout
from opdcore.rollouts.torch_sampler import Sampling, sample

__all__ = ["Rollout", "Sampling", "sample"]
