"""A run's directory: whose it is, and who is at work in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml

from sami_nemo.config.files import dump_config, settings_of_results
from sami_nemo.config.schema import Config
from sami_nemo.errors import RunDirectoryError
from sami_nemo.run_dir import RunDir, partial, write_text


@dataclass(frozen=True)
class Launcher:
    """A process that holds a run."""

    host: str
    process: int


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[RunDir]:
    """The run's directory with its configuration, locked against other launchers.

    Raises:
        RunDirectoryError: it holds something else, or another launcher has it.
    """
    run = RunDir(config.run_dir)
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        lock = _lock_file(run).open("a+")
    except OSError as error:
        remedy = f"cannot be made or written ({error.strerror}); choose another name= or runs_dir="
        raise RunDirectoryError("run directory", run.root, remedy) from None
    with lock:
        if not _locked(lock):
            remedy = "another launcher runs it; wait for it to end or stop it (action=cancel)"
            raise RunDirectoryError("run directory", run.root, remedy)
        lock.truncate(0)
        lock.write(json.dumps({"host": socket.gethostname(), "process": os.getpid()}))
        lock.flush()
        claim(config, run)
        run.log("x").parent.mkdir(exist_ok=True)
        yield run


def launcher_of(run: RunDir) -> Launcher | None:
    """Who holds the run now."""
    with contextlib.suppress(OSError, ValueError), _lock_file(run).open("r+") as lock:
        if not _locked(lock):
            return Launcher(**json.loads(lock.read()))
    return None


def _lock_file(run: RunDir) -> Path:
    return run.root / ".lock"


def _locked(lock: IO[Any]) -> bool:
    """Whether we have the lock now. It goes with its file, or with the process."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
    ours = (_lock_file(run).name, partial(run.config).name)
    foreign = sorted(path.name for path in run.root.iterdir() if path.name not in ours)
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
