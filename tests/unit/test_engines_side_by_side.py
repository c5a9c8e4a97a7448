"""Engines that share a stage: at the same time and each on its own GPUs, where there are GPUs; else one after the other."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sami_nemo.config.compose import compose
from sami_nemo.launch.console import PlainView
from sami_nemo.launch.local_runner import StageFailed, run_stages
from sami_nemo.launch.stages import Stage

# Waits until as many others as `together` have come, so that it ends only if they run at the same time.
ENGINE = """
import os, sys, time
from pathlib import Path
name, directory, together, behaviour = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
(directory / f"{name}.came").touch()
deadline = time.monotonic() + 300
while len(list(directory.glob("*.came"))) < together:
    assert time.monotonic() < deadline, "the others never came"
    time.sleep(0.01)
if behaviour == name:
    sys.exit(1)
if behaviour != "none":
    time.sleep(600)
(directory / f"{name}.partial").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
"""


def run(directory: Path, hardware: list[str], together: int, behaviour: str = "none") -> str:
    config = compose(["recipe=sami_debug", f"runs_dir={directory}", "generate.engines=3", *hardware])
    root = config.run_dir
    stages = [
        Stage(f"sample_0_engine_{k}", "generate", "toy", engine=k, outputs=(root / f"sample_0_engine_{k}",))
        for k in range(3)
    ]
    printed = io.StringIO()
    run_stages(
        config,
        stages,
        PlainView(Console(file=printed)),
        {},
        lambda stage, config: [sys.executable, "-c", ENGINE, stage.name, str(root), str(together), behaviour],
    )
    return printed.getvalue()


def gpus(directory: Path) -> list[str]:
    return [(directory / "sami_debug" / f"sample_0_engine_{k}").read_text() for k in range(3)]


def test_as_many_at_once_as_there_are_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    eight = ["hardware=a100_8", "generate.tensor_parallel=2"]
    run(tmp_path / "all", eight, together=3)
    assert gpus(tmp_path / "all") == ["0,1", "2,3", "4,5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,6,5,4")
    run(tmp_path / "some", [*eight, "hardware.devices_per_node=4"], together=2)
    assert gpus(tmp_path / "some") == ["7,6", "5,4", "7,6"]


def test_one_after_the_other_on_a_cpu(tmp_path: Path) -> None:
    printed = run(tmp_path, [], together=1).splitlines()
    assert [line.partition(":")[2].split()[0] for line in printed] == ["starts", "finished"] * 3
    assert gpus(tmp_path) == ["all"] * 3


def test_when_one_fails_the_others_are_stopped(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="stage sample_0_engine_1 failed"):
        run(tmp_path, ["hardware=a100_8"], together=3, behaviour="sample_0_engine_1")
    assert not list((tmp_path / "sami_debug").glob("sample_0_engine_?"))
