"""Where the wall time of a stage goes, from the marks in its events."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sami_nemo.launch.stage_log import last_progress, phases


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
