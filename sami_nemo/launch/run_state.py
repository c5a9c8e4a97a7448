"""How far a run has come: for `action=status` and `action=logs`, of runs on this machine and on a cluster alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sami_nemo.file_lock import Owner
from sami_nemo.launch import manifests
from sami_nemo.launch.console import Progress
from sami_nemo.launch.manifests import State
from sami_nemo.launch.slurm.commands import WAITING
from sami_nemo.launch.slurm.jobs import LiveJob, recorded_ids
from sami_nemo.launch.stage_log import last_progress, log_lines, log_tail
from sami_nemo.launch.stages import Stage
from sami_nemo.run_dir import RunDir, read_json

RUNNING = "runs"
FAILED = "failed"
STOPPED = "stopped"
FINISHED = "finished"
WAITS = "waits"


@dataclass(frozen=True)
class StageState:
    """One line of `action=status`."""

    stage: Stage
    state: str
    job: str = ""
    note: str = ""
    """Progress of a stage that runs, why one waits, or how one failed (several lines)."""
    seconds: float | None = None
    """That it took, if it is finished."""


def read_states(
    run: RunDir, stages: Sequence[Stage], launcher: Owner | None, jobs: Sequence[LiveJob]
) -> list[StageState]:
    """Where each stage stands.

    Args:
        launcher: who carries out the run on a machine, if anybody does.
        jobs: of the run, with Slurm.
    """
    by_stage = {name: job for job in jobs for name in job.stages}
    ids = recorded_ids(run)
    states: list[StageState] = []
    unfinished: set[str] = set()
    for stage in stages:
        state = _state(run, stage, unfinished, launcher, by_stage.get(stage.name), ids.get(stage.name, ""))
        if state.state != FINISHED:
            unfinished.add(stage.name)
        states.append(state)
    return states


def _state(
    run: RunDir, stage: Stage, unfinished: set[str], launcher: Owner | None, job: LiveJob | None, last_job: str
) -> StageState:
    if not unfinished & set(stage.inputs) and manifests.inspect(run, stage) in (State.FINISHED, State.EDITED):
        return StageState(stage, FINISHED, last_job, seconds=read_json(run.manifest(stage.name)).get("wall_seconds"))
    if job is not None:
        if job.state in WAITING:
            return StageState(stage, WAITS, job.id, job.reason)
        return StageState(stage, RUNNING, job.id, _progress(run, stage))
    failure = manifests.read_failure(run, stage)
    if failure and launcher is None:
        return StageState(stage, FAILED, last_job, failure["message"])
    if not manifests.attempt_path(run, stage).exists() or unfinished & set(stage.inputs):
        return StageState(stage, WAITS)
    if launcher is not None:
        return StageState(stage, RUNNING, f"process {launcher.process} on {launcher.host}", _progress(run, stage))
    if last_job:
        # A job that Slurm ended with all its processes: out of memory or time, cancelled, or its node lost.
        return StageState(stage, STOPPED, last_job, f"its job is gone; {run.job_log(stage.name)} may say why")
    return StageState(stage, STOPPED)


def _progress(run: RunDir, stage: Stage) -> str:
    event = last_progress(run.events(stage.name), manifests.log_starts(run, stage)[1])
    return Progress(first=event, last=event).line() if event else ""


def status_lines(run: RunDir, states: Sequence[StageState]) -> list[str]:
    """A table, and for each failed stage how it failed."""
    counts = {
        state: sum(each.state == state for each in states) for state in (FINISHED, RUNNING, WAITS, STOPPED, FAILED)
    }
    summary = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    width = max(len(each.stage.name) for each in states)
    jobs = max(len(each.job) for each in states)
    lines = [f"{run.root}: {summary}"]
    for each in states:
        note = "" if each.state == FAILED else each.note
        note = f"{each.seconds:.0f} s" if each.seconds is not None else note
        lines.append(f"{each.stage.name:{width}}  {each.state:8}  {each.job:{jobs}}  {note}".rstrip())
    for each in states:
        if each.state == FAILED:
            lines += ["", f"{each.stage.name} failed:", each.note, f"whole log: {run.log(each.stage.name)}"]
    return lines


def log_of(run: RunDir, states: Sequence[StageState]) -> tuple[Path, list[str]] | None:
    """The log that says most now, with its last lines: of the stage that failed, runs, or was the last to run."""
    order = (FAILED, STOPPED, RUNNING)
    for wanted in order:
        for each in states:
            if each.state == wanted and (found := tail_of(run, each.stage)) is not None:
                return found
    finished = [each for each in states if each.state == FINISHED]
    return tail_of(run, finished[-1].stage) if finished else None


def tail_of(run: RunDir, stage: Stage) -> tuple[Path, list[str]] | None:
    """A stage's own log, or its Slurm job's if it has none yet, with its last lines."""
    logs = [path for path in (run.log(stage.name), run.job_log(stage.name)) if path.exists() and path.stat().st_size]
    if not logs:
        return None
    return logs[0], log_tail(log_lines(logs[0], 0)).splitlines()
