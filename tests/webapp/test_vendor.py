"""The vendored front-end files are exactly those that VENDOR.json and SHA256SUMS name."""

import hashlib
import json
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[2] / "static" / "vendor"


def shipped_files() -> dict[str, str]:
    return {
        str(path.relative_to(VENDOR)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.glob("*@*/*")
    }


def test_vendored_files_match_sha256sums() -> None:
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    assert shipped_files() == listed


def test_vendored_files_match_the_manifest() -> None:
    listed = {
        f"{entry['package']}@{entry['version']}/{name}": digest
        for entry in json.loads((VENDOR / "VENDOR.json").read_text())
        for name, digest in entry["files"].items()
    }
    assert shipped_files() == listed


def test_every_vendored_package_ships_its_licence() -> None:
    for entry in json.loads((VENDOR / "VENDOR.json").read_text()):
        assert entry["licence"]
        assert "LICENSE" in entry["files"]


def test_vendored_files_name_no_source_map() -> None:
    for path in [*VENDOR.glob("*@*/*.js"), *VENDOR.glob("*@*/*.css")]:
        assert b"sourceMappingURL" not in path.read_bytes(), path.name
