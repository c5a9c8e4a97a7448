"""A path that vLLM takes for nothing but a path."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

# vLLM looks for weights by patterns below the path of the model, and takes a colon for a part of an address.
READ_BY_VLLM = set("*?[]:")


@contextlib.contextmanager
def plain_path(model: Path) -> Iterator[Path]:
    """The directory `model`, or for as long as the context is open a link to it, where its path says more to vLLM."""
    if not READ_BY_VLLM & set(str(model)):
        yield model
        return
    with tempfile.TemporaryDirectory(prefix="sami_nemo_") as directory:
        link = Path(directory) / "model"
        link.symlink_to(model.resolve())
        yield link
