"""Each package imports only what its own group of requirements names: no luck with a neighbour's."""

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent.parent
OURS = {"opdcore", "webapp", "workers", "tests", "benchmarks"}
# Published apart, but documented as parts of the ones named here and never chosen alone.
PARTS_OF = {
    "annotated-types": "pydantic",
    "asgiref": "django",
    "kombu": "celery",
    "pydantic-core": "pydantic",
}
DISTRIBUTIONS = packages_distributions()


def asked_for(*groups):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {"base": project["dependencies"], **project["optional-dependencies"]}
    texts = [text for group in groups for text in extras[group]]
    requirements = [Requirement(text) for text in texts]
    return {canonicalize_name(requirement.name) for requirement in requirements}


def imported(folder):
    """Third-party distributions by the top-level module names that the files import."""
    for file in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for top in {name.partition(".")[0] for name in names} - OURS - sys.stdlib_module_names:
                found = {canonicalize_name(name) for name in DISTRIBUTIONS.get(top, [top])}
                yield {PARTS_OF.get(name, name) for name in found}, file


@pytest.mark.parametrize(
    ("folder", "groups"),
    [
        ("webapp", ["base"]),
        ("workers", ["base"]),
        ("opdcore/contract", ["base"]),
        ("opdcore", ["base", "engine"]),
        ("tests", ["base", "engine", "dev"]),
    ],
)
def test_a_package_imports_what_its_group_names(folder, groups):
    named = asked_for(*groups)
    unnamed = {
        (*found, str(file.relative_to(ROOT)))
        for found, file in imported(folder)
        if not found & named
    }
    assert unnamed == set()
