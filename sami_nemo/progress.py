"""How a stage tells its progress: one JSON object per line in the file that SAMI_EVENTS names.

A file works alike for a process on this machine and for a job on a cluster. The launcher shows the
events; a stage that is run by hand, without SAMI_EVENTS, prints nothing of the kind.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any

EVENTS_VARIABLE = "SAMI_EVENTS"


def report(done: int, total: int, unit: str, **values: float | int | str) -> None:
    """Append a progress event.

    Args:
        done: how much of the stage's work is finished, in `unit`.
        total: how much there is.
        unit: what is counted: "steps", "responses", "tensors", …
        values: what to show beside it, e.g. loss=0.69, bound=0.01, tokens_per_s=812.
    """
    _append({"done": done, "total": total, "unit": unit, **values})


def report_error(message: str) -> None:
    """Append the line that the user is to see. An exit status does not survive torch.distributed.run."""
    _append({"error": message})


def _append(event: dict[str, Any]) -> None:
    path = os.environ.get(EVENTS_VARIABLE)
    if path is None:
        return
    event = {"time": time.time(), **event}
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(event) + "\n")
