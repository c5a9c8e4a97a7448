"""What a run takes from the Hugging Face hub: whether it is in the cache, or can be fetched. Needs no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sami_nemo.base_model.checks import check_checkpoint
from sami_nemo.base_model.locate import HUB_NAME, download, locate, model_files
from sami_nemo.config.schema import Config
from sami_nemo.errors import CheckpointError, DataError, UserError
from sami_nemo.hub import Choose, Repository, Unavailable, ask, cache_directory, explain, is_offline
from sami_nemo.launch.stages import on_hub
from sami_nemo.queries.files import can_be_read, check_opens
from sami_nemo.queries.hub_data import data_files, from_branches
from sami_nemo.queries.loaders import load_queries

# Rows that are looked at before a run: enough to see a wrong field, in no time.
SAMPLE_ROWS = 100
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Need:
    """A model or a data set on the hub."""

    field: str
    """The key that names it."""
    name: str
    kind: Literal["model", "dataset"]

    @property
    def repository(self) -> Repository:
        return Repository(self.name, self.kind)


def cache_of(config: Config) -> Path:
    """The hub's cache that the run's stages find."""
    return cache_directory(_variables(config))


def _variables(config: Config) -> dict[str, str]:
    """What the run's stages have in their environment."""
    jobs = config.cluster.default.environment if config.cluster.scheduler == "slurm" else {}
    return os.environ | jobs


def taken_models(config: Config) -> dict[str, str]:
    """Models that the run takes as they are, by their key: directories, hub names, or mistakes."""
    models = {
        "model.path": config.model.path if config.model.prepare == "none" else None,
        "evaluate.instruct": config.evaluate.instruct,
        "principles.model": config.principles.model if config.principles.source == "local" else None,
    }
    return {field: name for field, name in models.items() if name is not None}


def absent_models(config: Config) -> dict[str, str]:
    """Those that are no directories here."""
    return {field: name for field, name in taken_models(config).items() if not Path(name).is_dir()}


def needs_of(config: Config) -> list[Need]:
    """Everything that is named by a hub name."""
    models = [Need(field, name, "model") for field, name in absent_models(config).items() if HUB_NAME.fullmatch(name)]
    return [*models, *([Need("data.source", config.data.source, "dataset")] if on_hub(config.data.source) else [])]


def check_hub(config: Config) -> list[UserError]:
    """Models and data that are named by a hub name can be opened here without a network, or be fetched."""
    problems: list[UserError] = []
    for need in needs_of(config):
        try:
            if not _is_cached(config, need):
                _look_up(config, need)
        except UserError as error:
            problems.append(error)
    return problems


def files_of(config: Config, need: Need, fetch: bool) -> list[Path]:
    """The files of what is needed, in the cache.

    Args:
        fetch: whether to fetch what is missing.

    Raises:
        UserError: they cannot be had.
    """
    cache = cache_of(config)
    if need.kind == "dataset":
        return [file for subset in data_files(config.data, fetch, cache) for file in subset.files]
    directory = (download if fetch else locate)(need.name, need.field, cache)
    return sorted(path for path in directory.iterdir() if path.is_file())


def open_offline(config: Config, need: Need) -> list[Path]:
    """Open what is needed, without a network: a model's config.json, every file of the data and its first rows.

    Returns:
        Its files.

    Raises:
        UserError: it is not there, or not what it should be.
    """
    files = files_of(config, need, fetch=False)
    if need.kind == "model":
        check_checkpoint(files[0].parent, need.field)
        return files
    for file in files:
        check_opens(file)
    if all(map(can_be_read, files)):
        load_queries(config.data, count_tokens=lambda text: 0, most=SAMPLE_ROWS, cache=cache_of(config))
    return files


def _is_cached(config: Config, need: Need) -> bool:
    """Whether it is in the cache.

    Raises:
        UserError: it is, and cannot be used.
    """
    try:
        files_of(config, need, fetch=False)
    except UserError:
        return False
    open_offline(config, need)
    return True


def _look_up(config: Config, need: Need) -> None:
    """Ask the hub for what is not in the cache.

    Raises:
        UserError: the hub does not answer, or has not what is needed.
    """
    problem = CheckpointError if need.kind == "model" else DataError
    where = f"not in the cache ({cache_of(config)}; HF_HOME)"
    if is_offline(_variables(config)):
        raise problem(need.field, need.name, f"{where}, and HF_HUB_OFFLINE is set; {need.repository.remedy}")
    try:
        if need.kind == "model":
            _choose_on_hub(need.repository, model_files)
        else:
            from_branches(config.data, _choose_on_hub)
    except Unavailable as error:
        raise problem(need.field, need.name, f"{where}; on the hub: {error}") from None


def _choose_on_hub(repository: Repository, choose: Choose) -> Path:
    """See whether the hub has what would be fetched. Returns no directory of use."""
    try:
        info = ask(repository)
    except Exception as error:  # whatever a network, a proxy or the hub may do
        raise Unavailable(explain(error, repository)) from None
    choose([file.rfilename for file in info.siblings or []])
    return Path()
