"""Where the files of a model are: a directory, or the local cache of a hub name."""

from __future__ import annotations

import re
from pathlib import Path

from sami_nemo.errors import CheckpointError

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Weights as safetensors only: the other formats are pickle.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model*"]


def locate(path: str, field: str = "model.path") -> Path:
    """The directory of the Hugging Face checkpoint `path`, a directory or a downloaded hub name. Uses no network.

    Raises:
        CheckpointError: it is neither.
    """
    return _snapshot(path, field, download=False)


def download(path: str, field: str = "model.path") -> Path:
    """Like `locate`, and fetches a hub name that is not in the local cache."""
    return _snapshot(path, field, download=True)


def _snapshot(path: str, field: str, download: bool) -> Path:
    if Path(path).is_dir():
        return Path(path)
    if not HUB_NAME.fullmatch(path):
        raise CheckpointError(field, path, "no such directory; give a Hugging Face checkpoint or a hub name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=HUB_FILES, local_files_only=not download))
    # What huggingface_hub raises derives from these: no such repository, no access, no network, not cached.
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = (
            f"neither a directory nor available from the hub ({reason}); download it where there is a network "
            "(`hf download NAME`, after `hf auth login` if it is gated), or give a directory"
        )
        raise CheckpointError(field, path, remedy) from None
