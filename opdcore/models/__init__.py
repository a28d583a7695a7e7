"""Models: a folder or a hub id becomes something that reads ids and continues them."""

from opdcore.models.loading import LoadedModel, load, resolve

__all__ = ["LoadedModel", "load", "resolve"]
