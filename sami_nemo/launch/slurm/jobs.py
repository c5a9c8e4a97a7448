"""A run's Slurm jobs: submitted in a chain with `afterok`, looked after, and cancelled.

What the jobs of a run are doing is asked of squeue, by the paths of their scripts, so that nothing is lost with a
launcher that is killed while it submits. What a job does before and after its stage is in job.py.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from sami_nemo.config.schema import Config
from sami_nemo.errors import EnvironmentMismatch, RunDirectoryError, UserError
from sami_nemo.launch import manifests
from sami_nemo.launch.manifests import State
from sami_nemo.launch.slurm.commands import ask_slurm, list_queue, refusal, submit_script
from sami_nemo.launch.slurm.script import Job, image_of, job_of, job_settings
from sami_nemo.launch.stages import Stage
from sami_nemo.run_dir import RunDir, read_json, write_json, write_text

PROGRAMS = ("sbatch", "squeue", "scancel", "scontrol", "srun")


@dataclass(frozen=True)
class LiveJob:
    """A job, or a task of an array, that Slurm has not finished with."""

    id: str
    """As scancel takes it: 12, or 12_3 for a task."""
    state: str
    """Slurm's: PENDING, RUNNING, …"""
    reason: str
    """Why it is pending."""
    stages: tuple[str, ...]
    """One, or those of an array whose tasks Slurm has not told apart."""


def submit(config: Config, run: RunDir, stages: Sequence[Stage]) -> dict[str, str]:
    """Submit what is neither finished nor with Slurm already.

    Stops behind a stage that is to be reviewed.

    Returns:
        Id by stage, of the jobs that were submitted.
    """
    jobs = live_jobs(run, stages)
    ids = {stage: job.id.partition("_")[0] for job in jobs for stage in job.stages}
    live, submitted = set(ids), {}
    unfinished: set[str] = set()
    # With those of a launcher that was killed between submitting and writing.
    recorded = recorded_ids(run) | {job.stages[0]: job.id for job in jobs if len(job.stages) == 1}
    if jobs:
        write_json(_record(run), recorded)
    for _, group in groupby(stages, key=lambda stage: stage.array):
        waiting = [stage for stage in group if _to_do(run, stage, unfinished)]
        unfinished |= {stage.name for stage in waiting}
        missing = tuple(stage for stage in waiting if stage.name not in live)
        if missing:
            job = job_of(config, missing[0].array, missing)
            after = sorted({ids[name] for name in job.after if name in unfinished})
            number = _sbatch(run, job, after, ids.values())
            for stage in missing:
                ids[stage.name] = submitted[stage.name] = number
                recorded[stage.name] = number if stage.engine is None else f"{number}_{stage.engine}"
            write_json(_record(run), recorded)
        if any(stage.review for stage in waiting):
            break
    return submitted


def recorded_ids(run: RunDir) -> dict[str, str]:
    """Id of the latest job of each stage that was ever submitted."""
    return read_json(_record(run)) if _record(run).exists() else {}


def _record(run: RunDir) -> Path:
    return run.jobs / "jobs.json"


def _to_do(run: RunDir, stage: Stage, unfinished: set[str]) -> bool:
    """Whether the stage is to run. What an unfinished one reads may change, so it cannot be finished."""
    if unfinished & set(stage.inputs):
        return True
    state = manifests.inspect(run, stage)
    if state is State.EDITED:
        manifests.adopt(run, stage)
        return False
    return state is not State.FINISHED


def _sbatch(run: RunDir, job: Job, after: Sequence[str], before: Collection[str]) -> str:
    """Submit a job behind those of the ids `after`; returns its id.

    Where sbatch names none, squeue is asked: a controller under load may take a job and fail to say so.

    Args:
        before: ids of the run's jobs that were with Slurm already.

    Raises:
        EnvironmentMismatch: the job is not with Slurm, or that cannot be known.
    """
    write_text(job.path, job.script)
    number, said = submit_script(job.path, after)
    if number is not None:
        return number
    try:
        found = {live.id.partition("_")[0] for live in live_jobs(run, job.stages)} - set(before)
    except EnvironmentMismatch as error:
        remedy = (
            f"it is not known whether {job.name} is with Slurm (squeue: {error.value}); the same command asks again"
        )
        raise EnvironmentMismatch("sbatch", said, remedy) from None
    if len(found) == 1:
        return found.pop()
    if found:
        remedy = f"{job.name} is with Slurm as several jobs ({', '.join(sorted(found))}); end them (action=cancel)"
    else:
        remedy = (
            f"{job.name} is not with Slurm; is this a login node of the cluster? The same command goes on from here"
        )
    raise EnvironmentMismatch("sbatch", said, remedy)


def live_jobs(run: RunDir, stages: Sequence[Stage]) -> list[LiveJob]:
    """The run's jobs that are pending, running or about to end, in the order of their ids.

    Raises:
        EnvironmentMismatch: Slurm does not answer.
    """
    if not run.jobs.is_dir() or shutil.which("squeue") is None:
        # Never submitted, or copied from the cluster to another machine.
        return []
    by_array = {name: list(group) for name, group in groupby(stages, key=lambda stage: stage.array)}
    jobs = run.jobs.resolve()
    live = []
    for job in list_queue(jobs):
        path = Path(job.script)
        if path.parent == jobs and path.stem in by_array:
            live.append(LiveJob(job.id, job.state, job.reason, _stages_of(job.id, by_array[path.stem])))
    return live


def _stages_of(id: str, stages: list[Stage]) -> tuple[str, ...]:
    task = re.search(r"_(\d+)$", id)
    return tuple(stage.name for stage in stages if task is None or stage.engine == int(task[1]))


def check_not_queued(run: RunDir, stages: Sequence[Stage]) -> None:
    """Refuse to carry out a run here whose jobs are with Slurm.

    Raises:
        RunDirectoryError: there are such jobs.
    """
    jobs = live_jobs(run, stages)
    if jobs:
        remedy = (
            f"its jobs are with Slurm ({', '.join(job.id for job in jobs)}); wait for them, or end them (action=cancel)"
        )
        raise RunDirectoryError("run directory", run.root, remedy)


def cancel(jobs: Sequence[LiveJob]) -> None:
    """Ask Slurm to end jobs; it takes a while until they are gone."""
    # Later ones first, so that none starts because an earlier one is gone.
    ask_slurm("scancel", *(job.id for job in reversed(jobs)))


def check_slurm(config: Config, jobs: Sequence[Job]) -> list[UserError]:
    """Whether Slurm's commands are here, and what the cluster says to the jobs, one line for each different complaint."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        remedy = "no such program; run this on a login node of the cluster, or choose cluster=local"
        return [EnvironmentMismatch("cluster", missing[0], remedy)]
    try:
        # Once, before every job is tried: a controller that is down answers each time after a minute.
        ask_slurm("squeue", "--noheader", f"--user={os.getuid()}")
    except EnvironmentMismatch as error:
        return [error]
    refused: dict[str, list[str]] = {}
    for job in jobs:
        complaint = refusal(job.script)
        kinds = refused.setdefault(complaint, []) if complaint is not None else []
        if job.stages[0].kind not in kinds:
            kinds.append(job.stages[0].kind)
    problems: list[UserError] = []
    for complaint, kinds in refused.items():
        remedy = f"sbatch refuses {', '.join(kinds)}: {complaint}; mend cluster.{kinds[0]} or cluster.default"
        problems.append(EnvironmentMismatch("cluster", config.cluster.name, remedy))
    return [*problems, *_check_images(config, jobs)]


def _check_images(config: Config, jobs: Sequence[Job]) -> list[UserError]:
    """Images and mounts that are files are there."""
    problems: list[UserError] = []
    stages = [job.stages[0] for job in jobs]
    for image in sorted({image for stage in stages if (image := image_of(config, stage)) is not None}):
        if image.startswith(("/", "./")) and not Path(image).exists():
            remedy = "no such container image; build it with containers/build.sh, or correct cluster.train_image or .generate_image"
            problems.append(EnvironmentMismatch("cluster image", image, remedy))
    sources = {mount.partition(":")[0] for stage in stages for mount in job_settings(config, stage).mounts}
    for source in sorted(sources):
        if not Path(source).exists():
            problems.append(EnvironmentMismatch("cluster mounts", source, "no such file or directory"))
    return problems
