"""Where the files of a model are: a directory, or the local cache of a hub name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from sami_nemo.errors import CheckpointError
from sami_nemo.hub import Choose, Repository, Snapshot, Unavailable, fetch, open_cached

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights as safetensors only: the other formats are pickle. The card tells the license.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model*", "README.md"]
# The same weights once more, in Mistral's own form.
NOT_FETCHED = "consolidated*"


def locate(path: str, field: str = "model.path", cache: Path | None = None) -> Path:
    """The directory of the Hugging Face checkpoint `path`, a directory or a downloaded hub name. Uses no network.

    Args:
        cache: of the hub; by default where the environment says.

    Raises:
        CheckpointError: it is neither.
    """
    return _directory(path, field, open_cached, cache)


def download(path: str, field: str = "model.path", cache: Path | None = None) -> Path:
    """Like `locate`, and fetches a hub name that is not in the local cache."""
    return _directory(path, field, fetch, cache)


def model_files(names: Sequence[str]) -> list[str]:
    """Those of a repository's files that a checkpoint consists of.

    Raises:
        Unavailable: it has no weights that can be read.
    """
    top = [name for name in names if "/" not in name and not fnmatchcase(name, NOT_FETCHED)]
    chosen = [name for name in top if any(fnmatchcase(name, pattern) for pattern in HUB_FILES)]
    if not any(name.endswith(".safetensors") for name in chosen):
        raise Unavailable("it holds no weights as *.safetensors in the form of transformers; convert the checkpoint")
    return chosen


def _directory(
    path: str, field: str, get: Callable[[Repository, Choose, Path | None], Snapshot], cache: Path | None
) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if not HUB_NAME.fullmatch(path):
        raise CheckpointError(field, path, "no such directory; give a Hugging Face checkpoint or a hub name")
    repository = Repository(path, "model")
    try:
        return get(repository, model_files, cache).directory
    except Unavailable as error:
        remedy = f"neither a directory nor available from the hub: {error}"
        if get is open_cached:
            remedy += f"; {repository.remedy}"
        raise CheckpointError(field, path, remedy) from None
