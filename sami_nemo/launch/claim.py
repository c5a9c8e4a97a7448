"""A run's directory: whose it is, and who is at work in it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from sami_nemo.config.files import dump_config, settings_of_results
from sami_nemo.config.schema import Config
from sami_nemo.errors import RunDirectoryError, storage_error
from sami_nemo.file_lock import LockHeld, Owner, held, holder, owner_file
from sami_nemo.run_dir import RunDir, partial, write_text


@contextlib.contextmanager
def open_run(config: Config) -> Iterator[RunDir]:
    """The run's directory with its configuration, locked against other launchers.

    Raises:
        RunDirectoryError: it holds something else, or another launcher has it.
        StorageError: its disk takes no more.
    """
    run = RunDir(config.run_dir)
    with contextlib.ExitStack() as lock:
        try:
            run.root.mkdir(parents=True, exist_ok=True)
            lock.enter_context(held(_lock_file(run), wait=False))
        except LockHeld as other:
            remedy = f"another launcher runs it ({other}); wait for it to end or stop it (action=cancel)"
            raise RunDirectoryError("run directory", run.root, remedy) from None
        except OSError as error:
            remedy = f"cannot be made or written ({error.strerror}); choose another name= or runs_dir="
            refused = storage_error(error, run.root)
            raise refused or RunDirectoryError("run directory", run.root, remedy) from None
        claim(config, run)
        run.log("x").parent.mkdir(exist_ok=True)
        yield run


def launcher_of(run: RunDir) -> Owner | None:
    """Who holds the run now."""
    return holder(_lock_file(run))


def _lock_file(run: RunDir) -> Path:
    return run.root / ".lock"


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
    lock = _lock_file(run)
    ours = (lock.name, owner_file(lock).name, partial(run.config).name)
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
