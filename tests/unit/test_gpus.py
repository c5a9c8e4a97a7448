"""Whether torch can use the GPUs, told by programs that answer as an environment's Python and nvidia-smi do."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.launch.gpus import check_gpu_stack

WORKS = {"torch": "2.13.0+cu130", "cuda": "13.0", "usable": True, "nccl": True}


def interpreter(directory: Path, **differs: Any) -> Path:
    program = directory / "python"
    program.write_text(f"#!/bin/sh\necho '{json.dumps(WORKS | differs)}'\n")
    program.chmod(0o755)
    return program


@pytest.fixture(autouse=True)
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text("#!/bin/sh\necho 535.104.05\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{os.environ['PATH']}")


def test_what_works_is_not_complained_about(tmp_path: Path) -> None:
    assert check_gpu_stack(interpreter(tmp_path)) == []


@pytest.mark.parametrize(
    ("differs", "parts"),
    [
        ({"usable": False}, ("NVIDIA driver = 535.104.05", "CUDA 13.0", "update the driver")),
        ({"cuda": None, "usable": False}, ("torch = 2.13.0+cu130", "without CUDA")),
        ({"nccl": False}, ("torch = 2.13.0+cu130", "without NCCL")),
    ],
)
def test_each_fault_is_named_with_its_remedy(differs: dict[str, Any], parts: tuple[str, ...], tmp_path: Path) -> None:
    (problem,) = check_gpu_stack(interpreter(tmp_path, **differs))
    assert all(part in str(problem) for part in parts)


def test_an_environment_without_torch(tmp_path: Path) -> None:
    (problem,) = check_gpu_stack(tmp_path / "nothing")
    assert "cannot be imported" in str(problem)


def test_the_real_torch_of_this_machine() -> None:
    import torch

    problems = check_gpu_stack(Path(sys.executable))
    assert (problems == []) == torch.cuda.is_available()
