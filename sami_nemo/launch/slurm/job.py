"""What a Slurm job does before and after its stage, in the stage's environment, on the first node of the job.

    python -m sami_nemo.launch.slurm.job begin --run-dir DIR --stage NAME
    python -m sami_nemo.launch.slurm.job end --run-dir DIR --stage NAME --status N --seconds S --ended T

Exit status of `begin`: 0 to go on, NOTHING_TO_DO. Of `end`: 0 when the stage is finished, START_AGAIN to be queued again.
Any other ends the job as failed, and with it the chain; manifests/<stage>.failure.json says why.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from sami_nemo.config.files import load_config
from sami_nemo.config.schema import Config
from sami_nemo.errors import EXIT_USER_ERROR, RunDirectoryError, StorageError, tell, user_error
from sami_nemo.launch import manifests
from sami_nemo.launch.preflight import check_node
from sami_nemo.launch.slurm.script import NOTHING_TO_DO, START_AGAIN
from sami_nemo.launch.stage_log import describe_exit, first_error, log_lines, log_tail
from sami_nemo.launch.stages import Stage, plan
from sami_nemo.run_dir import RunDir, partial
from sami_nemo.versions import check_versions

EXIT_FAILED = 1


def begin(config: Config, run: RunDir, stage: Stage) -> int:
    """Find out where the stage stands and get it ready.

    Raises:
        UserError: this node cannot carry it out.
    """
    stop_path(run, stage).unlink(missing_ok=True)
    unfinished = [name for name in stage.inputs if not run.manifest(name).exists()]
    if unfinished:
        remedy = f"stage {unfinished[0]} is not finished; submit the run again"
        raise RunDirectoryError("run directory", run.root, remedy)
    if manifests.settle(run, stage):
        print(f"{stage.name}: finished before", flush=True)
        return NOTHING_TO_DO
    problems = check_node(config, stage)
    if problems:
        raise problems[0]
    resumed = manifests.begin(run, stage, job_id())
    print(f"{stage.name}: {'goes on' if resumed else 'starts'} in job {job_id()}", flush=True)
    return 0


def end(config: Config, run: RunDir, stage: Stage, status: int, seconds: float, ended: float | None = None) -> int:
    """Record how the stage ended, and decide what comes next.

    Args:
        status: of its process.
        seconds: since the job's script began.
        ended: when the stage did, seconds since the epoch; just now if not given.
    """
    missing = [path for path in stage.outputs if not partial(path).exists()]
    stopped = stop_path(run, stage).exists()
    stop_path(run, stage).unlink(missing_ok=True)
    if status == 0 and not missing:
        split = manifests.finish(run, stage, seconds, check_versions(stage.environment), ended)
        print(f"{stage.name}: finished in {seconds:.0f} s: {split}", flush=True)
        return 0
    # By Slurm: how often this job was queued again.
    may_restart = int(os.environ.get("SLURM_RESTART_COUNT", "0")) < config.cluster.requeues
    if stopped and may_restart:
        print(f"{stage.name}: its time was over; it is queued again", flush=True)
        return START_AGAIN
    log_start, events_start = manifests.log_starts(run, stage)
    error = first_error(run.events(stage.name), events_start)
    failures = manifests.read_failure(run, stage).get("failures", 0) + 1
    message = error or _describe(status, missing, log_lines(run.log(stage.name), log_start))
    print(message, flush=True)
    manifests.record_failure(run, stage, message, job_id(), failures)
    again = error is None and may_restart and failures <= config.cluster.retries
    print(f"{stage.name}: {'it is queued again' if again else 'failed'}", flush=True)
    return START_AGAIN if again else EXIT_FAILED


def _describe(status: int, missing: list[Path], lines: list[str]) -> str:
    how = f"ended without writing {missing[0]}" if status == 0 else describe_exit(status, lines)
    return f"{log_tail(lines)}\nit {how}"


def stop_path(run: RunDir, stage: Stage) -> Path:
    """Asks the stage to stop, see progress.py."""
    return run.log(stage.name).with_suffix(".stop")


def job_id() -> str:
    return os.environ.get("SLURM_JOB_ID", "(none)")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("begin", "end"))
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--stage", required=True)
    parser.add_argument("--status", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    # A container may take a while to start for this process.
    parser.add_argument("--ended", type=float)
    arguments = parser.parse_args()
    config = load_config(arguments.run_dir / "config.yaml")
    run = RunDir(config.run_dir)
    (stage,) = [stage for stage in plan(config) if stage.name == arguments.stage]
    try:
        if arguments.what == "begin":
            return begin(config, run, stage)
        return end(config, run, stage, arguments.status, arguments.seconds, arguments.ended)
    except Exception as error:
        shown = user_error(error, run.root)
        if shown is None:
            raise
        tell(shown)
        # A disk that takes no more takes no record either.
        with contextlib.suppress(StorageError):
            manifests.record_failure(run, stage, str(shown), job_id())
        return EXIT_USER_ERROR


if __name__ == "__main__":
    sys.exit(main())
