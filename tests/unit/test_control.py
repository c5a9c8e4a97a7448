"""action=status, logs and cancel, on runs of this machine; those with Slurm are in tests/slurm."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

MAIN = Path(__file__).parents[2] / "launcher_scripts" / "main.py"


def words(directory: Path, *more: str) -> list[str]:
    places = [f"runs_dir={directory}", f"model.path={directory}/tiny-random"]
    return [sys.executable, str(MAIN), "recipe=sami_debug", "name=here", *places, *more]


def ask(directory: Path, *more: str) -> tuple[int, str, str]:
    done = subprocess.run(
        words(directory, *more), cwd=directory, capture_output=True, text=True, timeout=300, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("action", ["status", "logs", "cancel"])
def test_a_run_that_was_never_started(action: str, tmp_path: Path) -> None:
    status, printed, error = ask(tmp_path, f"action={action}")
    assert (status, printed) == (2, "")
    assert error.count("\n") == 1 and "no such run" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "start"),
    [
        (["action=stop"], "action = stop: no such action"),
        (["stage=train_1"], "stage = train_1: belongs to action=logs"),
        (["dry_run=perhaps"], "dry_run = perhaps: set true or false"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], start: str, tmp_path: Path) -> None:
    status, _, error = ask(tmp_path, *arguments)
    assert status == 2
    assert error.startswith(start) and error.count("\n") == 1


@pytest.mark.slow
def test_watched_cancelled_and_continued(tmp_path: Path) -> None:
    """A launcher in the background; someone else asks how it is, and ends it."""
    launcher = subprocess.Popen(
        words(tmp_path), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "here" / "manifests" / "model.attempt.json").exists():
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        status, printed, _ = ask(tmp_path, "action=status")
        assert status == 0
        rows = {line.split()[0]: line.split() for line in printed.splitlines()[1:]}
        assert rows["principles"][1] == "finished"
        assert rows["model"][1:4] == ["runs", "process", str(launcher.pid)]
        assert rows["train_1"][1] == "waits"
        assert ask(tmp_path, "action=logs", "stage=nothing")[0] == 2
        assert ask(tmp_path, "action=logs", "stage=train_1")[:2] == (0, "nothing is logged yet\n")
        status, printed, _ = ask(tmp_path, "action=logs", "stage=principles")
        assert status == 0 and printed.startswith("helpful, principle: ")

        status, printed, _ = ask(tmp_path, "action=cancel")
        assert status == 0 and f"process {launcher.pid}" in printed
        assert launcher.wait(300) == 130
    finally:
        launcher.kill()
        launcher.communicate()
    left = [
        entry
        for entry in Path("/proc").glob("[0-9]*")
        if entry.name != str(os.getpid()) and str(tmp_path / "here") in _command(entry)
    ]
    assert left == []
    status, printed, _ = ask(tmp_path, "action=status")
    assert status == 0
    assert ["model", "stopped"] in [line.split() for line in printed.splitlines()]
    assert ask(tmp_path, "action=cancel")[1] == "nothing of this run is under way\n"


def _command(entry: Path) -> str:
    try:
        return (entry / "cmdline").read_text(errors="replace")
    except OSError:
        return ""
