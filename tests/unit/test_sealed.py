"""Directories that are built once, whole, and notice damage."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sami_nemo.base_model import sealed
from sami_nemo.errors import CheckpointError
from tests.unit.no_flock import without_flock

ROOT = Path(__file__).parents[2]


def test_place_builds_once_and_notices_damage(tmp_path: Path) -> None:
    target = tmp_path / "models" / "m"
    builds: list[Path] = []

    def build(directory: Path) -> None:
        builds.append(directory)
        (directory / "weights").write_text("0123456789")

    assert sealed.place(target, build)
    assert not sealed.place(target, build)
    assert len(builds) == 1
    (target / "weights").write_text("0123456780")
    with pytest.raises(CheckpointError, match="weights"):
        sealed.place(target, build)
    (target / "weights").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        sealed.place(target, build)


def test_place_leaves_a_foreign_directory_alone(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "weights").write_text("mine")
    with pytest.raises(CheckpointError, match="no manifest"):
        sealed.place(tmp_path / "m", lambda directory: None)
    assert (tmp_path / "m" / "weights").read_text() == "mine"


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
from sami_nemo.base_model import sealed
def build(directory):
    (directory / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
sealed.place(Path(sys.argv[1]), build)
"""


def test_killed_build_leaves_no_model(tmp_path: Path) -> None:
    target = tmp_path / "m"
    killed = subprocess.run([sys.executable, "-c", KILLED_BUILD, str(target)], cwd=ROOT, check=False)
    assert killed.returncode == -9
    assert not target.exists()
    sealed.place(target, lambda directory: (directory / "whole").write_text("whole"))
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "whole"]


def test_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise OSError(errno.ENOSPC, "no room")

    with pytest.raises(OSError, match="no room"):
        sealed.place(tmp_path / "models" / "m", build)
    assert [path.name for path in (tmp_path / "models").iterdir()] == [sealed.LOCK]


SLOW_BUILD = """
import sys, time
from pathlib import Path
from sami_nemo.base_model import sealed
def build(directory):
    time.sleep(0.5)
    (directory / "weights").write_text("w")
print(sealed.place(Path(sys.argv[1]), build))
"""


@pytest.mark.parametrize("flock", [True, False], ids=["flock", "no flock"])
def test_two_processes_build_one_model(flock: bool, tmp_path: Path) -> None:
    """One waits for the other, on any file system."""
    command = [sys.executable, "-c", SLOW_BUILD, str(tmp_path / "m")]
    variables = os.environ | ({} if flock else without_flock(tmp_path))
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    assert sorted(process.communicate()[0].strip() for process in processes) == ["False", "True"]


def test_a_model_in_a_directory_that_cannot_be_written_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sealed.place(tmp_path / "m", lambda directory: None)

    def refuse(*arguments: object) -> None:
        raise AssertionError("nothing is to be locked or written")

    monkeypatch.setattr(sealed, "held", refuse)
    assert not sealed.place(tmp_path / "m", refuse)
