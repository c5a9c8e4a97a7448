"""The tree keeps its order: rooms import downwards only, the launcher loads nothing heavy, nothing is long or twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.unit.source_tree import find_circle, read_imports, read_modules, stretches_twice, too_long

ROOT = Path(__file__).parents[2]
# Each may import itself and those before it. The first is sami_nemo/__init__.py.
ROOMS = [
    "sami_nemo",
    "objective",
    "errors",
    "records",
    "progress",
    "file_lock",
    "run_dir",
    "versions",
    "geometry",
    "config_json",
    "hub",
    "config",
    "stage_entry",
    "prompts",
    "thinking",
    "refusals",
    "endpoint",
    "checkpoint",
    "base_model",
    "constitution",
    "queries",
    "planner",
    "serving",
    "writer",
    "generate",
    "contrast",
    "model_card",
    "model",
    "train",
    "evaluate",
    "report",
    "bench",
    "launch",
    "launcher_scripts",
    "tools",
]
# A room that need not exist.
PRODUCT = ("sami_nemo", "launcher_scripts", "tools")
EVERYTHING = (*PRODUCT, "tests")
# Seconds to import each, and a login node has none of them.
HEAVY = ("torch", "nemo", "megatron", "vllm", "transformers")
LONGEST_STRETCH = 12


def room_of(module: str) -> str:
    first, _, below = module.partition(".")
    return below.partition(".")[0] or first if first == "sami_nemo" else first


def against_the_order(root: Path, rooms: Sequence[str] = ROOMS) -> list[str]:
    """Rooms that are not in the list, arrows against it, and a circle if there is one."""
    modules = read_modules(root, [folder for folder in PRODUCT if (root / folder).is_dir()])
    imports = read_imports(root, modules)
    unknown = sorted({room_of(module) for module in modules} - set(rooms))
    if unknown:
        return [f"{room}: a room without a place in the order" for room in unknown]
    place = {room: number for number, room in enumerate(rooms)}
    upwards = [
        f"{found}, which stands behind {room_of(found.importer)}"
        for found in imports
        if place[room_of(found.imported)] > place[room_of(found.importer)]
    ]
    return [*upwards, *(f"{found}, in a circle" for found in find_circle(imports))]


def write_tree(root: Path, **files: str) -> None:
    """A tree of `sami_nemo/ROOM.py` files, or with two underscores `sami_nemo/ROOM/FILE.py`."""
    (root / "sami_nemo").mkdir(exist_ok=True)
    (root / "sami_nemo" / "__init__.py").touch()
    for name, text in files.items():
        path = (root / "sami_nemo").joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_rooms_import_only_what_stands_before_them() -> None:
    assert against_the_order(ROOT) == []


def test_every_room_exists() -> None:
    there = {room_of(module) for module in read_modules(ROOT, PRODUCT)}
    assert set(ROOMS) == there


def test_an_arrow_upwards_is_found_wherever_it_stands(tmp_path: Path) -> None:
    inner = "def f():\n    import sami_nemo.train\n"
    checking = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sami_nemo.report import page\n"
    relative = "from ..launch import stages\n"
    write_tree(tmp_path, errors=inner, model__shell=checking, config__schema=relative)
    write_tree(tmp_path, train="import sami_nemo.errors\n", report__page="", launch__stages="")
    assert against_the_order(tmp_path) == [
        "sami_nemo/config/schema.py:1: imports sami_nemo.launch.stages, which stands behind config",
        "sami_nemo/errors.py:2: imports sami_nemo.train, which stands behind errors",
        "sami_nemo/model/shell.py:3: imports sami_nemo.report.page, which stands behind model",
        "sami_nemo/errors.py:2: imports sami_nemo.train, in a circle",
        "sami_nemo/train.py:1: imports sami_nemo.errors, in a circle",
    ]


def test_a_circle_inside_a_room_is_found(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        model__a="from sami_nemo.model import b\n",
        model__b="from sami_nemo.model.c import f\n",
        model__c="def f():\n    from sami_nemo.model.b import g\n",
    )
    assert against_the_order(tmp_path) == [
        "sami_nemo/model/b.py:1: imports sami_nemo.model.c, in a circle",
        "sami_nemo/model/c.py:2: imports sami_nemo.model.b, in a circle",
    ]


def test_a_room_without_a_place_is_found(tmp_path: Path) -> None:
    write_tree(tmp_path, errors="", attic__old="")
    assert against_the_order(tmp_path) == ["attic: a room without a place in the order"]


IMPORT_WITHOUT_HEAVY = """
import importlib, sys
heavy, modules = sys.argv[1].split(","), sys.argv[2:]

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in heavy:
            raise ImportError("the launcher imports " + name)

sys.meta_path.insert(0, Refuse())
for module in modules:
    importlib.import_module(module)
"""


def import_without_heavy(root: Path, modules: Sequence[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPORT_WITHOUT_HEAVY, ",".join(HEAVY), *modules]
    variables = os.environ | {"PYTHONPATH": str(root)}
    return subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True, timeout=300, check=False)


def test_the_launcher_imports_nothing_heavy() -> None:
    """Everything in launch/, and with it whatever that imports; main.py itself imports from there and config/ only."""
    modules = read_modules(ROOT, PRODUCT)
    start = [name for name in modules if room_of(name) in ("launch", "config", "launcher_scripts")]
    result = import_without_heavy(ROOT, sorted(start))
    assert result.returncode == 0, result.stderr


def test_a_heavy_import_of_the_launcher_is_found(tmp_path: Path) -> None:
    write_tree(tmp_path, launch__stages="import sami_nemo.objective\n", objective="import torch.nn\n")
    result = import_without_heavy(tmp_path, ["sami_nemo.launch.stages"])
    assert "the launcher imports torch" in result.stderr


def test_no_stretch_of_lines_stands_twice() -> None:
    assert stretches_twice(ROOT, EVERYTHING, LONGEST_STRETCH) == []


def test_a_stretch_that_stands_twice_is_found(tmp_path: Path) -> None:
    lines = [f"value_{number} = {number}" for number in range(14)]
    spaced = ["import os", "", *(f"{line}\n# Why.\n" for line in lines)]
    apart = [*lines[:11], "between = 0", *lines[11:]]
    write_tree(tmp_path, a="\n".join(lines), b="\n".join(spaced), c="\n".join(apart))
    assert stretches_twice(tmp_path, ["sami_nemo"], 12) == ["sami_nemo/a.py:1 and sami_nemo/b.py:3"]


def test_what_is_too_long_is_found(tmp_path: Path) -> None:
    body = "    pass\n" * 60
    write_tree(tmp_path, a=f"class A:\n  def f(self):\n{body}", b="pass\n" * 401, c="pass\n" * 400)
    found = too_long(tmp_path, ["sami_nemo"], 400, 60)
    assert found == ["sami_nemo/a.py:2: f has 61 lines", "sami_nemo/b.py: 401 lines"]


def test_nothing_is_too_long_to_be_read_at_once() -> None:
    assert too_long(ROOT, EVERYTHING, 400, 60) == []


def test_the_table_in_the_docs_is_the_order() -> None:
    table = (ROOT / "docs" / "architecture.md").read_text().partition("## Rooms")[2].partition("\n## ")[0]
    rows = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = [name.removesuffix(".py").strip("/") for row in rows for name in re.findall("`([^`]+)`", row)]
    assert ["sami_nemo", *named, "launcher_scripts", "tools"] == ROOMS
