"""What a run reads and where it writes, checked before anything starts, as far as files here tell. Needs no torch.

Asked when a run begins, not for its status, logs or cancellation: its data may be gone by then. What is not on this
machine, a hub name or a file of a cluster, is left to the preflight.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sami_nemo.base_model import sealed
from sami_nemo.base_model.checks import check_checkpoint
from sami_nemo.config.schema import Config
from sami_nemo.errors import ConfigError, failures, raise_all
from sami_nemo.launch.slurm.mounts import mounted_places
from sami_nemo.launch.slurm.script import image_of
from sami_nemo.launch.stages import ROOT, plan
from sami_nemo.queries.files import can_be_read
from sami_nemo.queries.loaders import load_queries, local_files, paths_of
from sami_nemo.queries.split import split_for_run


def check_inputs(config: Config) -> None:
    """Refuse a run directory that cannot be written, and models and queries that no stage could use.

    Raises:
        UserError: all of them.
    """
    raise_all(failures((check_places, check_run_directory, check_models, check_queries), config))


def check_places(config: Config) -> None:
    """The repository and the run lie at paths that everything on the way can be told."""
    if os.pathsep in str(ROOT):
        raise ConfigError("repository", ROOT, "its path has a colon, which parts paths in PYTHONPATH; move it")
    run = config.run_dir.resolve()
    places = {"repository": ROOT, "working directory": Path.cwd(), "runs_dir": run}
    for field, place in places.items():
        # Bytes that are not UTF-8 are half characters in Python, and in no file that is written.
        if re.search("[\n\ud800-\udfff]", str(place)):
            raise ConfigError(
                field, ascii(str(place)), "its path has a line break, or is not UTF-8; choose another place"
            )
    if config.cluster.scheduler != "slurm":
        return
    if "\\" in str(run):
        raise ConfigError("runs_dir", run, "Slurm drops the backslash in paths of logs; choose another place")
    if any(image_of(config, stage) for stage in plan(config)):
        for place in mounted_places(config, config.cluster.default):
            if set(",:") & set(str(place)):
                raise ConfigError(
                    "cluster mounts", place, "commas and colons part containers' mounts; choose another place"
                )


def check_run_directory(config: Config) -> None:
    check_writable("runs_dir", config.runs_dir, config.run_dir)


def check_writable(field: str, value: str, directory: Path) -> None:
    """`directory` is there and can be written, or can be made."""
    # Unlike Path.exists, os.access minds neither names that are too long nor directories that are closed to us.
    existing = next(path for path in (directory, *directory.parents) if os.access(path, os.F_OK))
    if not existing.is_dir():
        raise ConfigError(field, value, f"{existing} is no directory; give another place")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(field, value, f"{existing} cannot be written; give another place")


def check_models(config: Config) -> None:
    """A directory that is given as a checkpoint is one, and what stands where a model will be made is that model."""
    model, instruct, principles = config.model, config.evaluate.instruct, config.principles
    base = Path(model.path)
    if model.prepare == "none":
        _check_if_here(base, "model.path")
    elif base.exists():
        sealed.verify(base, contents=False)
    else:
        check_writable("model.path", model.path, base)
    if instruct is not None:
        _check_if_here(Path(instruct), "evaluate.instruct")
    if principles.source == "local" and principles.model is not None:
        _check_if_here(Path(principles.model), "principles.model")


def _check_if_here(directory: Path, field: str) -> None:
    if directory.exists():
        check_checkpoint(directory, field)


def check_queries(config: Config) -> None:
    """Files of queries that are here can be read, and hold enough if the model's tokenizer finds none of them too long."""
    if not paths_of(config.data.source):
        return
    files = local_files(config.data.source)
    # A launcher on a login node has no packages to read Parquet with.
    if not all(map(can_be_read, files)):
        return
    queries, report = load_queries(config.data, count_tokens=lambda text: 0)
    split_for_run(config, queries, report.words())
