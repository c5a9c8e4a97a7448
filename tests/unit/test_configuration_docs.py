"""docs/configuration.md says of every key what it is, and is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sami_nemo.config.machine import ClusterConfig
from sami_nemo.config.overrides import KEYS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "configuration.md"
TOOL = ROOT / "tools" / "document_configuration.py"


def test_the_page_is_current() -> None:
    command = [sys.executable, str(TOOL), "--check"]
    checked = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert (checked.returncode, checked.stderr) == (0, "")


def rows() -> dict[str, list[str]]:
    lines = [line for line in PAGE.read_text().partition("## Recipes")[0].splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    return {cell[0].strip("`"): cell for cell in cells}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_has_a_type_and_a_meaning(key: str) -> None:
    group, _, below = key.partition(".")
    stage, _, field = below.partition(".")
    if group == "cluster" and field and stage in ClusterConfig.model_fields:
        key = f"cluster.default.{field}"
    row = rows()[key]
    assert len(row[1]) > 1 and len(row[-1]) > 5, row


def test_another_page_is_noticed(tmp_path: Path) -> None:
    """The check compares: with another page in its place it fails."""
    place = tmp_path / "tools" / TOOL.name
    place.parent.mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / PAGE.name).write_text("old")
    place.write_text(TOOL.read_text().replace('ROOT / "docs"', f'Path({str(tmp_path)!r}) / "docs"'))
    command = [sys.executable, str(place), "--check"]
    checked = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert checked.returncode == 1 and "not current" in checked.stderr
