"""Law 3, where static contracts are blind: what a fresh interpreter has loaded after the imports."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "accelerate", "peft", "vllm", "safetensors.torch"}
WEB = {"django", "celery", "kombu", "channels", "redis", "psycopg"}
TORCH_FREE = ("contract", "inspection", "rendering", "estimate", "monitor", "rescue")

IMPORT_ALL = """
import importlib, json, sys
if "webapp" in sys.argv[1]:
    import os, django
    os.environ["DJANGO_SETTINGS_MODULE"] = "webapp.settings"
    django.setup()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(sorted(sys.modules)))
"""


def modules_of(package):
    """Every module below a package, found by its files; a package is no namespace here."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = (file.relative_to(ROOT).with_suffix("").parts for file in files)
    return [".".join(name).removesuffix(".__init__") for name in names if name[-1] != "__main__"]


def torch_free_modules():
    layers = tuple(f"opdcore.{name}" for name in TORCH_FREE)
    found = modules_of("opdcore")
    return [name for name in found if name == "opdcore" or name.startswith(layers)]


def loaded_after(names, tmp_path):
    environment = {**os.environ, "STILLROOM_STATE": str(tmp_path)}
    command = [sys.executable, "-c", IMPORT_ALL, json.dumps(names)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("package", ["webapp", "workers"])
def test_a_web_package_loads_no_torch(package, tmp_path):
    names = modules_of(package)
    assert len(names) > 1
    loaded = loaded_after(["webapp", *names], tmp_path)
    assert set(names) <= loaded
    assert not loaded & HEAVY


def test_the_torch_free_layer_loads_neither_torch_nor_the_web(tmp_path):
    names = torch_free_modules()
    assert {"opdcore", "opdcore.contract.recipe"} <= set(names)
    loaded = loaded_after(names, tmp_path)
    assert set(names) <= loaded
    assert not loaded & (HEAVY | WEB)


def test_the_whole_of_opdcore_loads_neither_the_web_nor_vllm(tmp_path):
    loaded = loaded_after(modules_of("opdcore"), tmp_path)
    assert "torch" in loaded
    assert not loaded & {*WEB, "vllm"}
