"""Rollouts: responses sampled from a model, with the log-probability of each token."""

from opdcore.rollouts.rollout import Rollout
from opdcore.rollouts.sampler import sample
from opdcore.rollouts.sampling import Responder, Sampling

__all__ = ["Responder", "Rollout", "Sampling", "sample"]
