"""Placeholder until the tokenizer's own branch is merged."""

from __future__ import annotations

import shutil
from pathlib import Path

from sami_nemo.errors import CheckpointError


def write_tokenizer(checkpoint: Path, directory: Path, source: str) -> None:
    if not any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise CheckpointError(source, checkpoint, "no tokenizer.json")
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "tokenizer.model",
    ):
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, directory / name)
