"""Runs the stages of a plan on this machine, one after the other. Resuming is running the same plan again."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from sami_nemo.config.schema import Config
from sami_nemo.errors import RunDirectoryError, StorageError
from sami_nemo.launch import manifests
from sami_nemo.launch.claim import open_run
from sami_nemo.launch.console import View
from sami_nemo.launch.slurm.jobs import check_not_queued
from sami_nemo.launch.stage_log import EventReader, describe_exit, log_lines, log_tail
from sami_nemo.launch.stages import Stage, command, environment_variables
from sami_nemo.planner.engine import engines_at_once
from sami_nemo.progress import EVENTS_VARIABLE
from sami_nemo.run_dir import RunDir, partial

POLL_SECONDS = 0.2
# Long enough for torch.distributed.run to stop its processes; they save nothing when asked to stop.
GRACE_SECONDS = 10.0
PR_SET_PDEATHSIG = 1

CommandOf = Callable[[Stage, Config], list[str]]


class StageFailed(Exception):
    """A stage ended with an error that is not the user's; the text is for people."""


class ReviewPending(Exception):
    """A stage was asked to stop for a person to look at its output.

    Args:
        path: the file to read and edit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"written for review: {path}; edit it or leave it, then the same command goes on")


class StageError(Exception):
    """A stage ended with a `UserError`; the text is its line."""


def run_stages(
    config: Config,
    stages: list[Stage],
    view: View,
    versions: dict[str, dict[str, str]],
    command_of: CommandOf = command,
) -> None:
    """Carry out what is not finished of `stages`.

    Args:
        config: of the run; its directory is made if it does not exist.
        stages: in order; inputs come before the stages that read them.
        versions: packages of each environment, for the manifests.
        command_of: the command line of a stage.

    Raises:
        RunDirectoryError: the directory belongs to another configuration, or another launcher is at work there.
        StageError, StageFailed: a stage failed; those after it were not started.
        ReviewPending: the configuration asks to stop after a stage that was just finished.
    """
    with open_run(config) as run:
        check_not_queued(run, stages)
        stop_leftovers(run)
        for _, group in groupby(stages, key=lambda stage: stage.array):
            to_do = [stage for stage in group if not _finished_before(run, stage, view)]
            at_once = engines_at_once(config)
            for first in range(0, len(to_do), at_once):
                batch = to_do[first : first + at_once]
                _Batch(config, run, view, versions, command_of).carry_out(batch)
                if batch[0].review:
                    raise ReviewPending(batch[0].outputs[0])


def _finished_before(run: RunDir, stage: Stage, view: View) -> bool:
    finished = manifests.settle(run, stage)
    if finished:
        view.skipped(stage)
    return finished


@dataclass
class _Running:
    """A stage's process."""

    stage: Stage
    process: subprocess.Popen[bytes]
    events: EventReader
    log_start: int
    started: float
    error: str | None = None
    """The user's error that it has reported."""
    failed: bool = False


@dataclass(frozen=True)
class _Batch:
    """Stages that run side by side: one, or engines that share one's requests."""

    config: Config
    run: RunDir
    view: View
    versions: dict[str, dict[str, str]]
    command_of: CommandOf

    def carry_out(self, stages: Sequence[Stage]) -> None:
        """Returns when all have ended well; when one fails, the others are stopped.

        Raises:
            StageError: one ended with the user's error.
            StageFailed: one ended otherwise than with 0, or without its outputs.
        """
        running: list[_Running] = []
        try:
            for slot, stage in enumerate(stages):
                running.append(self._start(stage, slot))
            while running:
                time.sleep(POLL_SECONDS)
                for each in list(running):
                    ended = each.process.poll() is not None
                    self._show(each)
                    if ended:
                        self._end(each)
                        running.remove(each)
        except BaseException:
            for each in running:
                self.view.failed(each.stage, "failed" if each.failed else "stopped")
            raise
        finally:
            for each in running:
                stop_group(each.process)

    def _start(self, stage: Stage, slot: int) -> _Running:
        self.view.started(stage, resumed=manifests.begin(self.run, stage))
        events = EventReader(self.run.events(stage.name))
        variables = {
            **environment_variables(stage, self.config),
            EVENTS_VARIABLE: str(events.path.resolve()),
            **_gpus_of(stage, slot, self.config),
        }
        with self.run.log(stage.name).open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                self.command_of(stage, self.config),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **variables},
                start_new_session=True,
                preexec_fn=_end_with_launcher,
            )
        return _Running(stage, process, events, start, time.monotonic())

    def _show(self, running: _Running) -> None:
        """Pass new events on; keep the first error that the stage reports."""
        for event in running.events.new():
            if "error" in event:
                running.error = running.error or str(event["error"])
            elif "done" in event:
                self.view.progress(running.stage, event)
        self.view.refresh()

    def _end(self, running: _Running) -> None:
        """Finish a stage whose process has ended, or raise what it failed with."""
        stage, seconds = running.stage, time.monotonic() - running.started
        stop_group(running.process)
        self._show(running)
        error = self._error_of(running)
        if error is not None:
            running.failed = True
            try:
                manifests.record_failure(self.run, stage, str(error))
            except StorageError as refused:
                # The record is for who asks later. A stage that could not tell why it failed perhaps failed by this.
                if isinstance(error, StageFailed):
                    error = StageFailed(f"{error}\n{refused}")
            raise error
        split = manifests.finish(self.run, stage, seconds, self.versions.get(stage.environment, {}))
        self.view.finished(stage, seconds, split)

    def _error_of(self, running: _Running) -> StageError | StageFailed | None:
        stage, status = running.stage, running.process.returncode
        if status == 0:
            missing = [str(path) for path in stage.outputs if not partial(path).exists()]
            return StageFailed(f"stage {stage.name} ended without writing {', '.join(missing)}") if missing else None
        if running.error is not None:
            return StageError(running.error)
        log = self.run.log(stage.name)
        lines = log_lines(log, running.log_start)
        return StageFailed(
            f"{log_tail(lines)}\nstage {stage.name} {describe_exit(status, lines)}; the whole log is {log}; the same "
            "command goes on from here"
        )


def _gpus_of(stage: Stage, slot: int, config: Config) -> dict[str, str]:
    """The GPUs of one of several engines that run side by side, as a variable."""
    if stage.engine is None or config.hardware.accelerator == "cpu":
        return {}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = visible.split(",") if visible else [str(gpu) for gpu in range(config.hardware.devices_per_node)]
    size = config.generate.tensor_parallel
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[slot * size : (slot + 1) * size])}


def _end_with_launcher() -> None:
    """In the child: be asked to stop if the launcher is killed. Linux only; elsewhere `stop_leftovers` does it later."""
    if sys.platform == "linux":
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


# Loaded here, because a child between fork and exec should load nothing.
_LIBC = ctypes.CDLL(None)


def stop_group(process: subprocess.Popen[bytes]) -> None:
    """End a stage's process and all that it has started; returns when the process is gone."""
    if process.poll() is None:
        _signal_group(process.pid, signal.SIGTERM)
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
    finally:
        # Whatever is left of the group, also after an exit with 0: a stage is over when its process is. A second
        # Ctrl-C ends the wait.
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def stop_leftovers(run: RunDir) -> None:
    """Kill processes of this run that outlived a killed launcher: they would write beside the new ones.

    Asked again until none is left, because they may start others meanwhile. The lock is held, so no launcher waits for
    them.

    Raises:
        RunDirectoryError: one does not end, waiting for a dead file system or device.
    """
    deadline = time.monotonic() + GRACE_SECONDS
    while leftovers := _processes_of(run):
        if time.monotonic() > deadline:
            remedy = f"process {leftovers[0]} of an earlier launcher does not end; end it first"
            raise RunDirectoryError("run directory", run.root, remedy)
        for process in leftovers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        time.sleep(POLL_SECONDS)


def _processes_of(run: RunDir) -> list[int]:
    """Processes with an events file of this run in their environment; that of an ended process is empty."""
    logs = f"{EVENTS_VARIABLE}={run.log('x').parent.resolve()}{os.sep}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        # Other users' processes cannot be read, and processes end while we look.
        with contextlib.suppress(OSError):
            if any(value.startswith(logs) for value in (entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
    return found
