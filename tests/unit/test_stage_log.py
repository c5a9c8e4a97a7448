"""Where the wall time of a stage goes, from the marks in its events; and what its exit status means."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.launch.stage_log import describe_exit, last_progress, phases


def write(path: Path, *events: dict[str, Any]) -> int:
    """Append events; the size of the file before."""
    before = path.stat().st_size if path.exists() else 0
    with path.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    return before


def test_the_last_mark_of_each_counts(tmp_path: Path) -> None:
    """Called at 103, its model there at 114, the export at 160, over at 164."""
    events = tmp_path / "events.jsonl"
    write(events, {"time": 103.0, "phase": "work"}, {"time": 114.0, "phase": "work"})
    write(events, {"time": 120.0, "done": 1, "total": 2, "unit": "steps"}, {"time": 160.0, "phase": "saving"})
    assert phases(events, 0, 100.0, 164.0) == {"start_up": 14.0, "work": 46.0, "saving": 4.0}


def test_marks_of_earlier_attempts_do_not_count(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    write(events, {"time": 10.0, "phase": "work"}, {"time": 20.0, "phase": "saving"})
    start = write(events, {"time": 103.0, "phase": "work"})
    assert phases(events, start, 100.0, 109.0) == {"start_up": 3.0, "work": 6.0, "saving": 0.0}


def test_without_marks_all_is_work(tmp_path: Path) -> None:
    assert phases(tmp_path / "none.jsonl", 0, 100.0, 101.5) == {"start_up": 0.0, "work": 1.5, "saving": 0.0}


def test_marks_are_no_progress(tmp_path: Path) -> None:
    events = tmp_path / "events.jsonl"
    progress = {"time": 1.0, "done": 1, "total": 2, "unit": "steps"}
    write(events, progress, {"time": 2.0, "phase": "saving"})
    assert last_progress(events, 0) == progress


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (1, "failed with exit status 1"),
        (2, "failed with exit status 2"),
        (126, "failed with exit status 126 (not executable)"),
        (127, "failed with exit status 127 (command not found)"),
        (128, "failed with exit status 128"),
        (129, "was killed by SIGHUP"),
        (137, "was killed by SIGKILL (out of memory?)"),
        (143, "was killed by SIGTERM"),
        (160, "failed with exit status 160"),
        (163, "was killed by SIGRTMIN+1"),
        (192, "was killed by SIGRTMAX"),
        (193, "failed with exit status 193"),
        (254, "failed with exit status 254"),
        (255, "failed with exit status 255 (srun or ssh itself failed, or lost its node)"),
        (-9, "was killed by SIGKILL (out of memory?)"),
        (-11, "was killed by SIGSEGV"),
        (-32, "was killed by signal 32"),
        (-35, "was killed by SIGRTMIN+1"),
    ],
)
def test_an_exit_status_in_words(status: int, words: str) -> None:
    assert describe_exit(status, []) == words


@pytest.mark.parametrize("status", range(-64, 256))
def test_every_exit_status_has_words(status: int) -> None:
    words = describe_exit(status, ["nothing of interest"])
    by_signal = status < 0 or status - 128 in signal.valid_signals()
    assert words.startswith("was killed by " if by_signal else f"failed with exit status {status}")


@pytest.mark.parametrize("number", [9, 34, 63, 64, 127])
def test_a_signal_that_torchrun_names_is_told_whatever_torchrun_ended_with(number: int) -> None:
    lines = [f"E1125 api.py:874] failed (exitcode: -{number}) local_rank: 1 (pid: 7) of binary: python"]
    assert describe_exit(1, lines).startswith("was killed by SIG" if number < 65 else "was killed by signal 127")
