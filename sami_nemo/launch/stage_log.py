"""What a stage leaves to read: its events, and its log with what its exit status means."""

from __future__ import annotations

import contextlib
import json
import re
import signal
from pathlib import Path
from typing import Any

LOG_TAIL_LINES = 25
# What torch.distributed.run adds below the traceback of a failed process: forty lines without news.
ELASTIC_EPILOGUE = "torch/distributed/elastic/multiprocessing/api.py"
# How it tells the exit status of the process that failed first: negative is the number of a signal.
ELASTIC_SIGNAL = re.compile(r"failed \(exitcode: (-\d+)\)")
# A shell, and srun, give the number of a signal with this added.
SHELL_SIGNAL = 128
# What shells, srun and ssh mean by those of their own.
MEANINGS = {
    126: "not executable",
    127: "command not found",
    255: "srun or ssh itself failed, or lost its node",
}


class EventReader:
    """Follows an events file.

    Args:
        start: the byte from which on; its present end if not given.
    """

    def __init__(self, path: Path, start: int | None = None) -> None:
        self.path = path
        self._offset = start if start is not None else path.stat().st_size if path.exists() else 0
        self._torn = b""

    def new(self) -> list[dict[str, Any]]:
        """Whole lines that were appended since the last call; a damaged line is passed over."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        self._offset += len(text)
        *lines, self._torn = (self._torn + text).split(b"\n")
        events = []
        for line in lines:
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict)]


def phases(path: Path, start: int, began: float, ended: float) -> dict[str, float]:
    """Wall time of an attempt, in seconds: start_up, work and saving.

    Args:
        start: byte of the events file from which the attempt's own follow.
        began, ended: of the process, seconds since the epoch, as events tell time.
    """
    marks = {event["phase"]: float(event["time"]) for event in EventReader(path, start).new() if "phase" in event}
    work = marks.get("work", began)
    saving = max(marks.get("saving", ended), work)
    parts = {"start_up": work - began, "work": saving - work, "saving": ended - saving}
    # Clocks of nodes differ a little.
    return {name: round(max(seconds, 0.0), 1) for name, seconds in parts.items()}


def last_progress(path: Path, start: int) -> dict[str, Any] | None:
    """The latest progress event after byte `start`."""
    events = [event for event in EventReader(path, start).new() if "done" in event]
    return events[-1] if events else None


def first_error(path: Path, start: int) -> str | None:
    """The line of the user's error that the stage reported after byte `start`, if any."""
    return next((str(event["error"]) for event in EventReader(path, start).new() if "error" in event), None)


def log_lines(log: Path, start: int) -> list[str]:
    """What was printed after byte `start`; nothing if the stage never came to print."""
    if not log.exists():
        return []
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace").splitlines()


def describe_exit(status: int, lines: list[str]) -> str:
    """How a process ended, in words.

    Args:
        status: as subprocess tells it, negative for a signal; or as a shell and srun do, with 128 added.
        lines: of its log, where torch.distributed.run names the process that failed first.
    """
    first = next((int(match[1]) for match in map(ELASTIC_SIGNAL.search, lines) if match), status)
    if first < 0:
        return _killed_by(-first)
    # 128 and more may also be what a program itself ended with: only numbers of signals are taken for them.
    if status - SHELL_SIGNAL in signal.valid_signals():
        return _killed_by(status - SHELL_SIGNAL)
    meaning = MEANINGS.get(status)
    return f"failed with exit status {status}" + (f" ({meaning})" if meaning else "")


def _killed_by(number: int) -> str:
    """A process that the kernel kills for its memory prints nothing, so the signal is all there is to see."""
    if number in set(signal.Signals):
        name = signal.Signals(number).name
    elif signal.SIGRTMIN < number < signal.SIGRTMAX:
        name = f"SIGRTMIN+{number - signal.SIGRTMIN}"
    else:
        name = f"signal {number}"
    return f"was killed by {name}" + (" (out of memory?)" if number == signal.SIGKILL else "")


def log_tail(lines: list[str]) -> str:
    """The last lines before torch.distributed.run's own."""
    cut = next((index for index, line in enumerate(lines) if ELASTIC_EPILOGUE in line), len(lines))
    return "\n".join(lines[:cut][-LOG_TAIL_LINES:])
