"""The Hugging Face hub and its cache on this machine: where that is, what is whole in it, and how things get there.

One way for models and data, with and without a network. The hub's own library notes nowhere which files a repository
has, so that a download which was broken off looks like a small repository to whoever opens it offline. The list of the
files is therefore kept beside them, and the name of a branch is put in place last.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sami_nemo.run_dir import read_json, write_json, write_text

# The hub answers in a second or not at all.
TIMEOUT_SECONDS = 10
# Beside the cache's own `blobs`, `refs` and `snapshots`, which alone its tools look at.
LISTINGS = "sami_nemo_listings"
TRUE = ("1", "ON", "YES", "TRUE")

Choose = Callable[[Sequence[str]], Sequence[str]]
"""From the names of all files of a repository, those that are needed."""


class Unavailable(Exception):
    """Something cannot be had; the text is one line that says why, and what to do."""


@dataclass(frozen=True)
class Repository:
    """A branch of a repository on the hub."""

    name: str
    kind: Literal["model", "dataset"]
    branch: str = "main"

    @property
    def remedy(self) -> str:
        """What to do where it is not, and there is no network."""
        # Of data sets the library's own program fetches other branches and files than are read.
        also = f" or `hf download {self.name}`" if self.kind == "model" else ""
        return f"fetch it where there is a network, with action=prefetch{also}"


@dataclass(frozen=True)
class Snapshot:
    """Files of a repository in the cache, all there."""

    directory: Path
    names: tuple[str, ...]
    """Of the chosen files, relative to the directory."""

    @property
    def size(self) -> int:
        """Bytes of the chosen files."""
        return sum((self.directory / name).stat().st_size for name in self.names)


def home_directory(variables: Mapping[str, str] = os.environ) -> Path:
    """Where Hugging Face's libraries keep what is theirs, as huggingface_hub/constants.py finds it."""
    caches = variables.get("XDG_CACHE_HOME", "~/.cache")
    return _expanded(variables.get("HF_HOME", os.path.join(caches, "huggingface")))  # noqa: PTH118


def cache_directory(variables: Mapping[str, str] = os.environ) -> Path:
    """Where they keep what they fetch from the hub.

    That library reads the variables once, when it is imported, and may be another one where a job runs: the rules are
    therefore here as well, and a test compares them.
    """
    older = variables.get("HUGGINGFACE_HUB_CACHE", str(home_directory(variables) / "hub"))
    return _expanded(variables.get("HF_HUB_CACHE", older))


def _expanded(path: str) -> Path:
    return Path(os.path.expandvars(os.path.expanduser(path))).absolute()  # noqa: PTH111


def is_offline(variables: Mapping[str, str] = os.environ) -> bool:
    """Whether the user has told Hugging Face's libraries to use no network."""
    return (variables.get("HF_HUB_OFFLINE") or variables.get("TRANSFORMERS_OFFLINE") or "").upper() in TRUE


def open_cached(repository: Repository, choose: Choose, cache: Path | None = None, listed: bool = False) -> Snapshot:
    """The chosen files of a repository, from the cache alone.

    Args:
        cache: where to look; by default where the environment says.
        listed: only if all the repository's files are known; what another program fetched may be a part of them.

    Raises:
        Unavailable: they are not there, or not all of them.
    """
    cache = cache or cache_directory()
    # Not asked of the library: some of its versions want all files of a repository, not the chosen ones.
    folder = cache / f"{repository.kind}s--{repository.name.replace('/', '--')}"
    reference = folder / "refs" / repository.branch
    directory = folder / "snapshots" / (reference.read_text().strip() if reference.is_file() else "(none)")
    if not directory.is_dir():
        raise Unavailable(f"not in the cache ({cache}; HF_HOME)")
    listing = _listing_of(directory)
    if listed and not listing.is_file():
        raise Unavailable(f"perhaps not all of it is in the cache ({cache}; HF_HOME)")
    names = tuple(choose(read_json(listing) if listing.is_file() else _files_below(directory)))
    # A link of the cache whose file has not arrived does not exist.
    missing = [name for name in names if not (directory / name).exists()]
    if missing:
        raise Unavailable(f"{len(missing)} of its {len(names)} files are not in the cache ({cache}; HF_HOME)")
    if not listing.is_file() and any((folder / "blobs").glob("*.incomplete")):
        raise Unavailable(f"its download into the cache ({cache}; HF_HOME) was broken off")
    return Snapshot(directory, names)


def fetch(repository: Repository, choose: Choose, cache: Path | None = None) -> Snapshot:
    """Like `open_cached`; what is not in the cache is fetched. What has arrived of an earlier attempt is kept.

    Raises:
        Unavailable: it cannot be had.
    """
    try:
        return open_cached(repository, choose, cache, listed=True)
    except Unavailable as error:
        absent = str(error)
    try:
        if is_offline():
            raise Unavailable(f"{absent}, and HF_HUB_OFFLINE is set; {repository.remedy}")
        _download(repository, choose, cache or cache_directory())
    except Exception as error:  # whatever a network, a proxy, a disk or the hub may do
        # What another program fetched, or another process just now, may be all of it.
        with contextlib.suppress(Unavailable):
            return open_cached(repository, choose, cache)
        if isinstance(error, Unavailable):
            raise
        raise Unavailable(f"{absent}, and {explain(error, repository)}") from None
    return open_cached(repository, choose, cache)


def _download(repository: Repository, choose: Choose, cache: Path) -> None:
    """Fetch the chosen files and note which there are.

    Raises:
        Exception: whatever a network, a disk or the hub may do; see `explain`.
    """
    from huggingface_hub import snapshot_download

    info = ask(repository)
    listing = [file.rfilename for file in info.siblings or []]
    names = choose(listing)
    # By its hash: the library would write the branch's name before the files.
    directory = snapshot_download(
        repository.name,
        repo_type=repository.kind,
        revision=info.sha,
        cache_dir=cache,
        allow_patterns=[glob.escape(name) for name in names],
    )
    write_json(_listing_of(Path(directory)), listing)
    write_text(Path(directory).parents[1] / "refs" / repository.branch, info.sha)


def ask(repository: Repository) -> Any:
    """What the hub says of a repository: hash and names of files.

    Raises:
        Exception: whatever a network or the hub may do; see `explain`.
    """
    from huggingface_hub import HfApi

    info = HfApi().repo_info(
        repository.name, repo_type=repository.kind, revision=repository.branch, timeout=TIMEOUT_SECONDS
    )
    if getattr(info, "gated", False):
        # Everybody may read about it; only those who accepted its licence get its files.
        HfApi().auth_check(repository.name, repo_type=repository.kind)
    return info


def explain(error: Exception, repository: Repository) -> str:
    """Why the hub did not give something, and what to do."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        # What the library says when a file does not arrive; why is behind it.
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        return "its licence is to be accepted on the hub first; then set HF_TOKEN to a token of that account"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no such {repository.kind}, or HF_TOKEN may not see it; correct the name"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no branch {repository.branch} of it"
    if isinstance(error, HfHubHTTPError):
        return f"the hub refuses ({_first_line(error)}); try again later"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError | TimeoutError):
        return f"it cannot be written there ({error.strerror}); make room, or set HF_HOME to another place"
    return f"the hub does not answer ({type(error).__name__}); {repository.remedy}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _listing_of(snapshot: Path) -> Path:
    return snapshot.parents[1] / LISTINGS / f"{snapshot.name}.json"


def _files_below(directory: Path) -> list[str]:
    """Also links whose files are missing."""
    return sorted(
        path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_symlink() or path.is_file()
    )
