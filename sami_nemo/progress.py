"""How a stage tells its progress, and is asked to stop: one JSON object per line in the file that SAMI_EVENTS names, and
a file that appears where SAMI_STOP says.

Files work alike for a process on this machine and for a job in a container on several nodes. The launcher shows the
events; a stage that is run by hand, without SAMI_EVENTS, prints nothing of the kind.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Literal

from sami_nemo.errors import storage_error

EVENTS_VARIABLE = "SAMI_EVENTS"
STOP_VARIABLE = "SAMI_STOP"


def report(done: int, total: int, unit: str, **values: float | int | str) -> None:
    """Append a progress event.

    Args:
        done: how much of the stage's work is finished, in `unit`.
        total: how much there is.
        unit: what is counted: "steps", "responses", "tensors", …
        values: what to show beside it, e.g. loss=0.69, bound=0.01, tokens_per_s=812.
    """
    _append({"done": done, "total": total, "unit": unit, **values})


def report_phase(name: Literal["work", "saving"]) -> None:
    """Mark where the stage's own work begins, its start-up over, or where what it computed is written.

    The last mark of each counts: stages are marked when their main function is called, and those that load a model mark
    their work again when it is there.
    """
    _append({"phase": name})


def report_error(message: str) -> None:
    """Append the line that the user is to see. An exit status does not survive torch.distributed.run."""
    _append({"error": message})


def stop_requested() -> bool:
    """Whether the stage is to save its state and end, because its time is nearly over; it will be started again."""
    path = os.environ.get(STOP_VARIABLE)
    return path is not None and Path(path).exists()


def duration(seconds: float) -> str:
    """3725 -> 1:02:05, 65 -> 1:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _append(event: dict[str, Any]) -> None:
    path = os.environ.get(EVENTS_VARIABLE)
    if path is None:
        return
    event = {"time": time.time(), **event}
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")
    except OSError as error:
        # Work that has room elsewhere goes on unseen; work that has not says so itself.
        if storage_error(error, path) is None:
            raise
