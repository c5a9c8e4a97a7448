"""Which files of a hub data set hold a subset and a split, and where they are on this machine.

Data sets are read as files, so that what was fetched is read without a network. Names tell subset and split: directories
and words, as the hub's own viewer takes them. Where a data set's own files do not tell, as of one that is made by a
script, the hub's Parquet copy does.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sami_nemo.config.schema import DataConfig
from sami_nemo.errors import DataError
from sami_nemo.hub import Choose, Repository, Unavailable, fetch, open_cached
from sami_nemo.queries.files import FORMATS, PARQUET, ending_of

# Where the hub keeps a Parquet copy of data sets, in a directory for each subset and split.
PARQUET_COPY = "refs/convert/parquet"
# What splits are called in names of files.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
# train-00000-of-00008.parquet, also with a hash behind.
SHARD = re.compile(r"(?P<split>\w[\w.]*)-\d{5,}-of-\d{5,}")
# Descriptions of a data set, and not its rows.
DESCRIPTIONS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json")

Find = Callable[[Sequence[str], str, DataConfig], list[str]]
Get = Callable[[Repository, Choose], Path]
"""Makes sure of the files that are chosen; returns the directory that they are in."""


class Unsuitable(Unavailable):
    """A branch has not what is asked for."""


@dataclass(frozen=True)
class Subset:
    """Files of one subset in one split."""

    label: str
    """The subset, or the data set if it has none."""
    files: tuple[Path, ...]


def data_files(data: DataConfig, download: bool, cache: Path | None = None) -> list[Subset]:
    """The files of a hub data set, in the order of `data.subsets`.

    Args:
        download: fetch what is not in the cache.
        cache: where that is; by default where the environment says.

    Raises:
        DataError: they cannot be had.
    """

    def cached(listed: bool) -> list[Subset]:
        def get(repository: Repository, choose: Choose) -> Path:
            return open_cached(repository, choose, cache, listed).directory

        return from_branches(data, get, go_on=Unavailable)

    try:
        if not download:
            return cached(listed=False)
        with contextlib.suppress(Unavailable):
            return cached(listed=True)
        try:
            return from_branches(data, lambda repository, choose: fetch(repository, choose, cache).directory)
        except Unavailable:
            with contextlib.suppress(Unavailable):
                return cached(listed=False)
            raise
    except Unavailable as error:
        raise DataError("data.source", data.source, f"is no file here; as a hub data set: {error}") from None


def from_branches(data: DataConfig, get: Get, go_on: type[Unavailable] = Unsuitable) -> list[Subset]:
    """The files in the first branch that has what is asked for.

    Args:
        get: gets them there.
        go_on: after which errors of `get` the next branch is tried.

    Raises:
        Unavailable: no branch has it.
    """
    reasons: list[str] = []
    branches: dict[str, Find] = {"main": in_main, PARQUET_COPY: in_copy}
    for branch, find in branches.items():
        found: dict[str, list[str]] = {}

        def choose(names: Sequence[str], find: Find = find, found: dict[str, list[str]] = found) -> list[str]:
            found |= {subset or data.source: find(names, subset, data) for subset in data.subsets or [""]}
            return [name for chosen in found.values() for name in chosen]

        try:
            directory = get(Repository(data.source, "dataset", branch), choose)
        except go_on as error:
            reasons.append(str(error))
        except Unavailable as error:
            raise Unavailable("; ".join([*reasons, str(error)])) from None
        else:
            return [Subset(label, tuple(directory / name for name in names)) for label, names in found.items()]
    raise Unsuitable("; ".join(dict.fromkeys(reasons)))


def in_main(names: Sequence[str], subset: str, data: DataConfig) -> list[str]:
    """The files of a data set as its owner keeps it.

    Raises:
        Unsuitable: it has none of this subset and split.
    """
    if f"{data.source.rpartition('/')[2]}.py" in names:
        raise Unsuitable("it is made by a script, which is not run here")
    present = [name for name in names if _is_data(name)]
    if not present:
        raise Unsuitable(f"it holds no {', '.join(FORMATS[:-1])} or {FORMATS[-1]}")
    inside = [name for name in present if f"/{subset}/" in f"/{name}"] if subset else present
    if not inside:
        raise Unsuitable(f"it has no directory {subset} (data.subsets){_there_are(map(_directory, present))}")
    # The name of a subset may hold a word of splits.
    inner = {name: f"/{name}".replace(f"/{subset}/", "/", 1) if subset else name for name in inside}
    splits = {name: _split_of(rest) for name, rest in inner.items()}
    chosen = [name for name, split in splits.items() if split == _canonical(data.split)]
    chosen = chosen or [name for name in inside if data.split in PurePosixPath(name.removesuffix(_ending(name))).parts]
    if not chosen and data.split == "train" and set(splits.values()) == {None}:
        # Without a word of splits all of it is for training.
        chosen = inside
    if not chosen:
        raise Unsuitable(f"it has no split {data.split} (data.split){_there_are(splits.values())}")
    # Several formats hold the same rows, or descriptions beside rows.
    formats = Counter(_ending(name).removesuffix(".gz") for name in chosen)
    most = max(formats, key=lambda ending: (formats[ending], ending == PARQUET))
    return sorted(name for name in chosen if _ending(name).removesuffix(".gz") == most)


def in_copy(names: Sequence[str], subset: str, data: DataConfig) -> list[str]:
    """The files of the hub's Parquet copy: SUBSET/SPLIT/0000.parquet, formerly SUBSET/NAME-SPLIT.parquet.

    Raises:
        Unsuitable: it has none of this subset and split.
    """
    places = {name: PurePosixPath(name).parts for name in names if name.endswith(PARQUET) and name.count("/") in (1, 2)}
    subsets = sorted({parts[0] for parts in places.values()})
    wanted = subset or ("default" if "default" in subsets else subsets[0] if len(subsets) == 1 else "")
    if wanted not in subsets:
        problem = f"has no subset {subset} (data.subsets)" if subset else "has several subsets; set data.subsets"
        raise Unsuitable(f"its Parquet copy {problem}{_there_are(subsets)}")
    inside = {
        name: parts[1] if len(parts) > 2 else _split_of(parts[1])
        for name, parts in places.items()
        if parts[0] == wanted
    }
    chosen = sorted(name for name, split in inside.items() if split == data.split)
    if not chosen:
        raise Unsuitable(f"its Parquet copy has no split {data.split} (data.split){_there_are(inside.values())}")
    return chosen


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith((".", "_")) for part in path.parts)
    return not hidden and path.name not in DESCRIPTIONS and ending_of(path.name) is not None


def _directory(name: str) -> str:
    return str(PurePosixPath(name).parent)


def _ending(name: str) -> str:
    ending = ending_of(name)
    assert ending is not None
    return ending


def _split_of(name: str) -> str | None:
    """Of a file, by its own name or else by its directories; None: no name says."""
    path = PurePosixPath(name)
    stem = path.name.removesuffix(_ending(name))
    if shard := SHARD.match(stem):
        return _canonical(shard["split"])
    for text in (stem, *reversed(path.parts[:-1])):
        for word in re.split(r"[^a-z]+", text.lower()):
            if _canonical(word) in SPLIT_WORDS:
                return _canonical(word)
    return None


def _canonical(split: str) -> str:
    return next((name for name, words in SPLIT_WORDS.items() if split in words), split)


def _there_are(found: object) -> str:
    """`; there are …`, or nothing where nothing is."""
    names = sorted({str(each) for each in found if each not in (None, ".")})  # type: ignore[attr-defined]
    return f"; there are {', '.join(names)}" if names else ""
