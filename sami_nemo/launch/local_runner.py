"""Runs the stages of a plan on this machine, one after the other. Resuming is running the same plan again."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from sami_nemo.config import Config, dump_config, settings_of_results
from sami_nemo.errors import RunDirectoryError
from sami_nemo.launch import manifests
from sami_nemo.launch.console import View
from sami_nemo.launch.manifests import State
from sami_nemo.launch.stages import Stage, command, environment_variables
from sami_nemo.progress import EVENTS_VARIABLE
from sami_nemo.run_dir import RunDir, partial, write_text

LOG_TAIL_LINES = 25
# What torch.distributed.run adds below the traceback of a failed process: forty lines without news.
ELASTIC_EPILOGUE = "torch/distributed/elastic/multiprocessing/api.py"
# How it tells the exit status of the process that failed first: negative is the number of a signal.
ELASTIC_SIGNAL = re.compile(r"failed \(exitcode: (-\d+)\)")
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
        for stage in stages:
            state = manifests.inspect(run, stage)
            if state is State.FINISHED:
                view.skipped(stage)
                continue
            if state is State.EDITED:
                manifests.adopt(run, stage)
                view.skipped(stage)
                continue
            if state is State.TO_COMMIT:
                manifests.complete(run, stage)
                view.skipped(stage)
                continue
            if state is State.TO_START:
                manifests.start_over(run, stage)
            manifests.begin(run, stage)
            view.started(stage, resumed=state is State.INTERRUPTED)
            started = time.monotonic()
            try:
                run_stage(config, run, stage, view, command_of)
                manifests.finish(run, stage, time.monotonic() - started, versions.get(stage.environment, {}))
            except BaseException as error:
                view.failed(stage, "stopped" if isinstance(error, KeyboardInterrupt) else "failed")
                raise
            view.finished(stage, time.monotonic() - started)
            if stage.review:
                raise ReviewPending(stage.outputs[0])


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[RunDir]:
    """The run's directory with its configuration, locked against other launchers.

    Raises:
        RunDirectoryError: it holds something else, or another launcher has it.
    """
    run = RunDir(config.run_dir)
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        lock = open(run.root / ".lock", "w")  # noqa: SIM115 (closed below, where errors are not of this kind)
    except OSError as error:
        remedy = f"cannot be made or written ({error.strerror}); choose another name= or runs_dir="
        raise RunDirectoryError("run directory", run.root, remedy) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            remedy = "another launcher runs it; wait for it to end or stop it"
            raise RunDirectoryError("run directory", run.root, remedy) from None
        claim(config, run)
        stop_leftovers(run)
        run.log("x").parent.mkdir(exist_ok=True)
        yield run


def claim(config: Config, run: RunDir) -> None:
    """Write config.yaml, or make sure that it says the same.

    Raises:
        RunDirectoryError: it differs, or the directory is not a run's.
    """
    if run.config.exists():
        check_unchanged(config)
        if run.config.read_text(encoding="utf-8") != dump_config(config):
            write_text(run.config, dump_config(config))
        return
    foreign = sorted(path.name for path in run.root.iterdir() if path.name not in (".lock", partial(run.config).name))
    if foreign:
        remedy = f"holds {foreign[0]} but no config.yaml, so it is not a run; choose another name= or runs_dir="
        raise RunDirectoryError("run directory", run.root, remedy)
    write_text(run.config, dump_config(config))


def check_unchanged(config: Config) -> None:
    """Compare with the configuration that the run was started with, if there is one.

    Raises:
        RunDirectoryError: naming every key that differs, with both values.
    """
    run = RunDir(config.run_dir)
    if not run.config.exists():
        return
    before, now = settings_of_results(_read_config(run.config)), settings_of_results(config.model_dump())
    changes = [
        f"{key} was {before.get(key, '(absent)')}, is {now.get(key, '(absent)')}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key, ...) != now.get(key, ...)
    ]
    if changes:
        remedy = f"a run cannot change ({'; '.join(changes)}); choose another name=, or remove the directory"
        raise RunDirectoryError("run directory", run.root, remedy)


def _read_config(path: Path) -> dict[str, Any]:
    """Without checking its keys: those of an older version differ, and are then named."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict):
        raise RunDirectoryError(str(path), "(damaged)", "not a configuration; choose another name=, or remove the run")
    return values


def run_stage(config: Config, run: RunDir, stage: Stage, view: View, command_of: CommandOf) -> None:
    """Run one stage to its end, showing its progress.

    Raises:
        StageError: it ended with the user's error.
        StageFailed: it ended otherwise than with 0, or without its outputs.
    """
    events = EventReader(run.events(stage.name))
    with run.log(stage.name).open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            command_of(stage, config),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment_variables(stage, config), EVENTS_VARIABLE: str(events.path.resolve())},
            start_new_session=True,
            preexec_fn=_end_with_launcher,
        )
        error = None
        try:
            while process.poll() is None:
                time.sleep(POLL_SECONDS)
                error = _show(events, stage, view, error)
        finally:
            stop_group(process)
    error = _show(events, stage, view, error)
    if process.returncode == 0:
        missing = [str(path) for path in stage.outputs if not partial(path).exists()]
        if missing:
            raise StageFailed(f"stage {stage.name} ended without writing {', '.join(missing)}")
        return
    if error is not None:
        raise StageError(error)
    lines = log_lines(run.log(stage.name), log_start)
    raise StageFailed(
        f"{log_tail(lines)}\nstage {stage.name} {describe_exit(process.returncode, lines)}; the whole log is "
        f"{run.log(stage.name)}; the same command goes on from here"
    )


def _show(events: EventReader, stage: Stage, view: View, error: str | None) -> str | None:
    """Pass new events on; returns `error`, or else the first one that the stage reported, if any."""
    for event in events.new():
        if "error" in event:
            error = error or str(event["error"])
        else:
            view.progress(stage, event)
    view.refresh()
    return error


class EventReader:
    """Follows an events file from its present end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._torn = b""

    def new(self) -> list[dict[str, Any]]:
        """Whole lines that were appended since the last call; a damaged line is passed over."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        self._offset += len(text)
        *lines, self._torn = (self._torn + text).split(b"\n")
        events = []
        for line in lines:
            with contextlib.suppress(ValueError):
                events.append(json.loads(line))
        return [event for event in events if isinstance(event, dict)]


def log_lines(log: Path, start: int) -> list[str]:
    """What was printed after byte `start`."""
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace").splitlines()


def describe_exit(status: int, lines: list[str]) -> str:
    """In words. A process that the kernel kills for its memory prints nothing, so the signal is all there is to see."""
    first = next((int(match[1]) for match in map(ELASTIC_SIGNAL.search, lines) if match), status)
    if first >= 0:
        return f"failed with exit status {status}"
    name = signal.Signals(-first).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def log_tail(lines: list[str]) -> str:
    """The last lines before torch.distributed.run's own."""
    cut = next((index for index, line in enumerate(lines) if ELASTIC_EPILOGUE in line), len(lines))
    return "\n".join(lines[:cut][-LOG_TAIL_LINES:])


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
