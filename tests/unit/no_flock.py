"""A file system without flock, in what a test starts: Python reads this before the program."""

from __future__ import annotations

import errno
import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
REFUSE = """
import fcntl

def refuse(file, operation):
    raise OSError({number}, "no locks here")

fcntl.flock = refuse
"""


def without_flock(directory: Path, number: int = errno.ENOSYS) -> dict[str, str]:
    """Variables with which every Python that is started finds `flock` refused by the error `number`."""
    place = directory / f"no_flock_{number}"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(REFUSE.format(number=number))
    return {"PYTHONPATH": os.pathsep.join(map(str, (place, ROOT)))}
