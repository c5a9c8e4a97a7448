"""What a job's container sees of the files outside: each at its own path, and what links lead to at theirs."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sami_nemo.config.machine import JobConfig
from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import find_principles
from sami_nemo.errors import UserError
from sami_nemo.hub import cache_directory, home_directory
from sami_nemo.launch.hub import taken_models
from sami_nemo.launch.stages import ROOT
from sami_nemo.queries.loaders import local_files


def mounts_of(config: Config, job: JobConfig) -> list[str]:
    """SOURCE:TARGET of what a stage reads and writes, each at its own path, and of what the configuration adds."""
    return [*(f"{place}:{place}" for place in mounted_places(config, job)), *job.mounts]


def mounted_places(config: Config, job: JobConfig) -> list[Path]:
    """What a stage in a container needs of the files outside, none below another."""
    written = [ROOT, Path.cwd(), config.run_dir.parent, config.run_dir, *map(Path, hub_variables(job).values())]
    places = [place for path in written for place in places_of(_existing(path), inside=False)]
    places += [place for path in _inputs(config) for place in places_of(path)]
    return [place for place in dict.fromkeys(places) if not any(place != o and place.is_relative_to(o) for o in places)]


def hub_variables(job: JobConfig) -> dict[str, str]:
    """Where the launcher finds the hub's files, for a job: a container has another home, and a job's shell may, too."""
    variables = os.environ | job.environment
    return {"HF_HOME": str(home_directory(variables)), "HF_HUB_CACHE": str(cache_directory(variables))}


def places_of(path: Path, inside: bool = True) -> list[Path]:
    """What is to be mounted for `path` to be found: nothing, if it does not exist.

    Args:
        inside: whether links in a directory are followed, too.

    Returns:
        Directories, and what has no directory of its own: a file or link just below the root.
    """
    places: list[Path] = []
    seen: set[Path] = set()
    to_do = [Path(os.path.abspath(path))]  # noqa: PTH100 (resolve() would leave out the links)
    while to_do:
        place = to_do.pop()
        # A link that leads nowhere, or round in a circle, does not exist.
        if place in seen or not place.exists():
            continue
        seen.add(place)
        link = next((part for part in reversed([place, *place.parents]) if part.is_symlink()), None)
        if link is not None:
            places.append(_holder(link))
            to_do.append(Path(os.path.abspath(link.parent / link.readlink())) / place.relative_to(link))  # noqa: PTH100
        elif place.is_dir():
            places.append(place)
            to_do += [entry for entry in place.rglob("*") if entry.is_symlink()] if inside else []
        else:
            places.append(_holder(place))
    return places


def _holder(path: Path) -> Path:
    """The directory of a file or link, so that it is the same inside: but an image has directories below the root."""
    return path.parent if len(path.parent.parts) > 2 else path


def _existing(path: Path) -> Path:
    """`path`, or the nearest directory above that is there: what a stage makes in it is to outlast its container."""
    absolute = path.absolute()
    found = next(place for place in (absolute, *absolute.parents) if place.exists())
    return absolute if found == Path("/") else found


def _inputs(config: Config) -> list[Path]:
    """Models, principles and data that are given as files; what is not here is the preflight's business."""
    paths = [Path(path) for path in (config.model.path, *taken_models(config).values())]
    with contextlib.suppress(UserError):
        paths += [find_principles(config.principles.file)] if config.principles.file is not None else []
    with contextlib.suppress(UserError):
        paths += local_files(config.data.source)
    return paths
