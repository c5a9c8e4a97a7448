"""`action=status`, `logs` and `cancel`: for a run that a launcher carries out here, and for one with Slurm."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from sami_nemo.config.schema import Config
from sami_nemo.errors import ConfigError, RunDirectoryError
from sami_nemo.file_lock import Owner
from sami_nemo.launch import run_state
from sami_nemo.launch.claim import launcher_of
from sami_nemo.launch.run_state import StageState, read_states
from sami_nemo.launch.slurm.jobs import cancel, live_jobs
from sami_nemo.launch.stages import plan
from sami_nemo.run_dir import RunDir

EXIT_STAGE_FAILED = 1
POLL_SECONDS = 0.5
# Slurm kills what does not end by itself after KillWait, 30 seconds by default; a launcher does so after 10.
CANCEL_SECONDS = 120.0


def print_status(config: Config) -> int:
    """Print where every stage stands. Returns 1 if one has failed."""
    run, states = _states(config)
    print(*run_state.status_lines(run, states), sep="\n")
    return EXIT_STAGE_FAILED if any(state.state == run_state.FAILED for state in states) else 0


def print_log(config: Config, stage: str | None) -> int:
    """Print the end of a stage's log, or of the one that says most now.

    Raises:
        ConfigError: no such stage.
    """
    run, states = _states(config)
    if stage is None:
        found = run_state.log_of(run, states)
    else:
        named = [state.stage for state in states if state.stage.name == stage]
        if not named:
            names = ", ".join(state.stage.name for state in states)
            raise ConfigError("stage", stage, f"no such stage; there are {names}")
        found = run_state.tail_of(run, named[0])
    if found is None:
        print("nothing is logged yet")
    else:
        path, lines = found
        print(*lines, f"(end of {path})", sep="\n")
    return 0


def cancel_run(config: Config) -> int:
    """End the run's launcher or its jobs, and wait until they are gone."""
    run = _started(config)
    launcher = launcher_of(run)
    stages = plan(config)
    jobs = live_jobs(run, stages)
    if launcher is not None:
        _end(launcher, run)
        print(f"ended the launcher, process {launcher.process}; the same command goes on from here")
    if jobs:
        cancel(jobs)
        _wait_until(lambda: not live_jobs(run, stages), RunDirectoryError("jobs", run.root, "do not end; see squeue"))
        print(f"cancelled {len(jobs)} jobs ({', '.join(job.id for job in jobs)}); the same command goes on from here")
    if launcher is None and not jobs:
        print("nothing of this run is under way")
    return 0


def _states(config: Config) -> tuple[RunDir, list[StageState]]:
    run, stages = _started(config), plan(config)
    return run, read_states(run, stages, launcher_of(run), live_jobs(run, stages))


def _started(config: Config) -> RunDir:
    run = RunDir(config.run_dir)
    if not run.config.exists():
        raise RunDirectoryError(
            "run directory", run.root, "no such run; give the name= and runs_dir= it was started with"
        )
    return run


def _end(launcher: Owner, run: RunDir) -> None:
    if not launcher.visible():
        remedy = f"process {launcher.process} on {launcher.host} runs it; cancel it there"
        raise RunDirectoryError("run directory", run.root, remedy)
    with contextlib.suppress(ProcessLookupError):
        os.kill(launcher.process, signal.SIGTERM)
    failure = RunDirectoryError("run directory", run.root, f"process {launcher.process} does not end; kill it")
    _wait_until(lambda: launcher_of(run) is None, failure)


def _wait_until(holds: Callable[[], bool], failure: RunDirectoryError) -> None:
    deadline = time.monotonic() + CANCEL_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            raise failure
        time.sleep(POLL_SECONDS)
