"""What every test starts from: one thread, no network, a state folder of its own, the system's Chromium."""

import os
import shutil
from pathlib import Path

import pytest

# Before any test imports torch or transformers, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"

OPDCORE_TESTS = Path(__file__).resolve().parent / "opdcore"
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM_FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --disable-quic --disable-dev-shm-usage"
)


def pytest_collection_modifyitems(items):
    missing = {
        "postgres": (on_postgres, "needs PostgreSQL: run scripts/postgres pytest -m postgres"),
        "browser": (chromium, "needs Chromium: make setup installs it or says why not"),
        "gpu": (has_gpu, "needs a CUDA device"),
        "vllm": (has_vllm, "needs vLLM: make vllm"),
    }
    for name, (at_hand, reason) in missing.items():
        marked = [item for item in items if item.get_closest_marker(name)]
        if marked and not at_hand():
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def on_postgres():
    return os.environ.get("DATABASE_URL", "").startswith("postgres")


def chromium():
    return next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)


def has_gpu():
    import torch

    return torch.cuda.is_available()


def has_vllm():
    from opdcore.contract.errors import EngineFailure
    from opdcore.serving.server import environment_of_vllm

    try:
        return bool(environment_of_vllm())
    except EngineFailure:
        return False


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix, tmp_path_factory):
    """SQLite in a file: one in memory has locks of its own kind between threads, and no processes."""
    from django.db import connection

    if connection.vendor == "sqlite":
        file = tmp_path_factory.mktemp("database") / "test.sqlite3"
        connection.settings_dict["TEST"]["NAME"] = str(file)


@pytest.fixture(autouse=True)
def state_of_its_own(request, tmp_path):
    """No test writes into the checkout: files, artifacts and prompt sets go to its own folder.

    opdcore's tests know no Django: they also run with `-p no:django`.
    """
    if request.path.is_relative_to(OPDCORE_TESTS):
        return
    settings = request.getfixturevalue("settings")
    settings.STATE_DIR = tmp_path / "state"
    settings.STATE_DIR.mkdir()
    settings.STORAGES = {
        name: moved(storage, settings.STATE_DIR) for name, storage in settings.STORAGES.items()
    }


def moved(storage, state_dir):
    if "location" not in storage.get("OPTIONS", {}):
        return storage
    location = state_dir / Path(storage["OPTIONS"]["location"]).name
    return {**storage, "OPTIONS": {**storage["OPTIONS"], "location": location}}


@pytest.fixture(scope="session")
def browser_type_launch_args(browser_type_launch_args):
    return {
        **browser_type_launch_args,
        "executable_path": chromium(),
        "args": CHROMIUM_FLAGS.split(),
    }
