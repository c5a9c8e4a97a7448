"""Slurm's commands, and what of their output is an answer.

Sites print more around it: banners of login scripts, words of plugins, the name of the cluster.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sami_nemo.errors import EnvironmentMismatch
from sami_nemo.launch.programs import run as run_program

# Slurm's commands answer in a fraction of a second; a controller under load may take long.
TIMEOUT_SECONDS = 60
# sbatch prints ID[;CLUSTER] with --parsable; wrappers that drop the option let it say the other.
SUBMITTED = re.compile(r"(?:Submitted batch job )?([1-9]\d*)(?:;[\w.-]+| on cluster \S+)?")
# 12, or 12_3 for a task of an array, or 12_[3-5] for tasks that are not told apart.
JOB_ID = re.compile(r"[1-9]\d*(?:_(?:\d+|\[[\d,:%-]+\]))?")
STATE = re.compile(r"[A-Z][A-Z_]*")
# The states that a job does not leave, and those in which it waits. Any other, such as one of a newer Slurm, is taken for
# running: nothing is submitted again beside it.
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT")
)
WAITING = frozenset(("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"))
# Of what a command printed, in a message.
LONGEST_QUOTE = 300


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue."""

    id: str
    state: str
    reason: str
    script: str


def submit_script(script: Path, after: Sequence[str]) -> tuple[str | None, str]:
    """Submit a script behind the jobs `after`.

    Returns:
        The job's id, None unless sbatch ended well and named exactly one; and what it said, in short. Without an id, the
        job may be with Slurm all the same.
    """
    dependency = [f"--dependency=afterok:{':'.join(after)}"] if after else []
    status, output, error = run_program(["sbatch", "--parsable", *dependency, str(script)], TIMEOUT_SECONDS)
    matches = map(SUBMITTED.fullmatch, map(str.strip, output.splitlines()))
    ids = {match[1] for match in matches if match}
    number = ids.pop() if status == 0 and len(ids) == 1 else None
    return number, f"{_complaint(output, error)} (exit status {status})"


def list_queue(about: Path) -> list[QueuedJob]:
    """The user's jobs that have not ended.

    Args:
        about: a directory; a line that names it must be an answer.

    Raises:
        EnvironmentMismatch: Slurm does not answer, or not in the way it was asked for.
    """
    # All states: SQUEUE_STATES may leave some out.
    asked = ("--noheader", "--array", f"--user={os.getuid()}", "--states=all", "--format=%i|%T|%r|%o")
    jobs = []
    for line in ask_slurm("squeue", *asked).splitlines():
        fields = [field.strip() for field in line.split("|", 3)]
        if len(fields) == 4 and JOB_ID.fullmatch(fields[0]) and STATE.fullmatch(fields[1]):
            jobs.append(QueuedJob(*fields))
        elif f"{about}/" in line:
            remedy = "a line about this run that cannot be read; is squeue here Slurm's own?"
            raise EnvironmentMismatch("squeue", _in_short(line), remedy)
    return [job for job in jobs if job.state not in ENDED]


def refusal(script: str) -> str | None:
    """Why the cluster would not take a script; None if it would."""
    status, output, error = run_program(["sbatch", "--test-only"], TIMEOUT_SECONDS, text=script)
    return None if status == 0 else _complaint(output, error).removeprefix("allocation failure: ")


def ask_slurm(*words: str) -> str:
    """What a command of Slurm prints.

    Raises:
        EnvironmentMismatch: it is not there, fails, or does not answer.
    """
    status, output, error = run_program(list(words), TIMEOUT_SECONDS)
    if status != 0:
        remedy = "failed; is this a login node of the cluster?"
        raise EnvironmentMismatch(words[0], _complaint(output, error), remedy)
    return output


def _complaint(output: str, error: str) -> str:
    """The errors among what a command printed; all of it if it names none."""
    errors = [line.partition("error: ")[2] for line in error.splitlines() if "error: " in line]
    return _in_short("\n".join(errors) or f"{error}\n{output}") or "(nothing)"


def _in_short(text: str) -> str:
    """One line, without control characters."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= LONGEST_QUOTE else line[:LONGEST_QUOTE] + "…"
