"""Programs that are asked something: a version, the GPUs, Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path


def run(command: list[str], seconds: float, cwd: Path | None = None, text: str | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr; a program that is missing or hangs counts as failed.

    Args:
        text: for its stdin.
    """
    try:
        # A banner of a login node may be of any encoding.
        done = subprocess.run(
            command,
            cwd=cwd,
            input=text,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, "", str(error)
    return done.returncode, done.stdout, done.stderr
