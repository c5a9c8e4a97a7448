"""What stands on a hub in the tests: models, and the paper's data sets as they are there."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import huggingface_hub.constants
import huggingface_hub.file_download
import pyarrow
import pyarrow.parquet
import pytest

from tests.checkpoints import weights
from tests.hub_server import Stored
from tests.unit.test_bad_commands import MISTRAL

# Nothing listens there.
NO_NETWORK = "http://127.0.0.1:9"
MODEL, INSTRUCT, TLDR = (
    "mistralai/Mistral-7B-v0.1",
    "mistralai/Mistral-7B-Instruct-v0.1",
    "openai/summarize_from_feedback",
)


def jsonl(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(*rows: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)
    return file.getvalue()


def checkpoint() -> dict[str, bytes]:
    """The files of a model, as far as anything opens them."""
    config, held = json.dumps(MISTRAL).encode(), weights(MISTRAL)[0]
    return {"config.json": config, "model.safetensors": held, "tokenizer.json": b"{}", "pytorch_model.bin": b"no"}


def posts(*names: str) -> bytes:
    return parquet(*({"info": {"post": f"{name} post."}, "choice": 0} for name in names))


def tldr(**options: Any) -> Stored:
    """As OpenAI's data set stands on the hub: a script, and the hub's Parquet copy."""
    copy = {
        "axis/test/0000.parquet": posts("wrong"),
        "comparisons/train/0000.parquet": posts("first", "second"),
        "comparisons/train/0001.parquet": posts("third", "fourth"),
        "comparisons/validation/0000.parquet": posts("wrong"),
    }
    main = {"README.md": b"", "dataset_infos.json": b"{}", "summarize_from_feedback.py": b"raise SystemExit"}
    return Stored(main=main, refs__convert__parquet=copy, **options)


def hh_rlhf() -> Stored:
    """As Anthropic's data set stands on the hub: packed lines in directories, and a copy that mixes them."""

    def talk(text: str) -> bytes:
        return gzip.compress(jsonl({"chosen": f"\n\nHuman: {text}\n\nAssistant: Yes.", "rejected": ""}))

    main: dict[str, bytes] = {"README.md": b"", "red-team-attempts/red_team_attempts.jsonl.gz": talk("wrong")}
    for subset in ("harmless-base", "helpful-base", "helpful-online"):
        main |= {f"{subset}/{split}.jsonl.gz": talk(f"{subset} {split}?") for split in ("train", "test")}
    copy = {"default/train/0000.parquet": parquet({"chosen": "wrong"})}
    return Stored(main=main, refs__convert__parquet=copy)


def use(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask another hub: two modules of the library have read the address already."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
