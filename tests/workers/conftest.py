"""Workers without torch: the emitter stands where opdcore does, started as opdcore is."""

import json

import pytest

from tests.workers.rows import make_run
from workers import execute, inventory
from workers.inventory import Found


@pytest.fixture
def emitting(settings, monkeypatch):
    """Runs are executed by tests/workers/emitter.py, cold, on two devices."""
    monkeypatch.setattr(execute, "PROGRAM", "tests.workers.emitter")
    settings.WORKER_WARM = False
    settings.WORKER_GRACE_SECONDS = 1.0
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}}


@pytest.fixture
def host(settings):
    """Registers a worker with these devices and makes it this process's."""

    def register(*devices, name="here"):
        settings.WORKER_NAME = name
        settings.WORKER_DEVICES = list(devices or ("cpu:0",))
        return inventory.register([Found(device) for device in settings.WORKER_DEVICES])

    return register


def make_told(told=None, **overrides):
    """A queued run whose job does what it is told."""
    run = make_run(**overrides)
    run.snapshot["recipe"]["document"]["description"] = json.dumps(told or {})
    run.save()
    return run
