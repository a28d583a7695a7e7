"""The commands that the documents quote exist, and CI runs the one that README gives."""

import re
import subprocess
from pathlib import Path

import pytest
from django.core.management import get_commands

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
TARGETS = {
    "help", "setup", "demo", "test", "check", "test-all", "fmt", "lint", "types", "imports", "schema", "bench",
    "calibrate", "rescue-study", "browser", "vllm", "test-vllm", "bench-gpu",
}  # fmt: skip


def quoted(text):
    """What stands in fences and in back-ticks."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, flags=re.DOTALL))


def named(pattern, document):
    return set(re.findall(pattern, quoted(document.read_text())))


def targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def test_help_lists_every_target():
    text = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert {
        line.split()[1] for line in text.splitlines() if line.startswith("  make ")
    } == targets()
    assert targets() == TARGETS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_commands_a_document_quotes_exist(document):
    assert named(r"\bmake ([a-z][a-z-]*)", document) <= targets()
    assert named(r"manage\.py ([a-z_]+)", document) <= set(get_commands())
    missing = [name for name in named(r"\bscripts/[\w.-]+", document) if not (ROOT / name).exists()]
    assert missing == []


def test_readme_gives_the_two_commands():
    assert {"demo", "test"} <= named(r"\bmake ([a-z-]+)", ROOT / "README.md")


def test_ci_runs_readmes_test_command():
    assert "exec make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(
    "script", [".ci/run", *(f"scripts/{p.name}" for p in ROOT.glob("scripts/*"))]
)
def test_a_script_is_executable_and_parses(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    if path.read_text().startswith("#!/usr/bin/env bash"):
        subprocess.run(["bash", "-n", path], check=True)


def test_no_file_names_a_build_of_torch():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    texts = [
        ROOT / name for name in listed.stdout.split() if name.endswith((".toml", ".lock", ".yml"))
    ]
    assert [path for path in texts if path.exists() and "+cpu" in path.read_text()] == []
