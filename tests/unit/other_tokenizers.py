"""Checkpoints with tokenizers as other people save them, for tests."""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from sami_nemo.base_model import sentencepiece_model
from sami_nemo.base_model.random_model import shipped_text, train_tokenizer
from sami_nemo.base_model.tokenizer import write_tokenizer
from sami_nemo.errors import CheckpointError
from sami_nemo.run_dir import write_json

NAMES = {"bos_token": "<s>", "eos_token": "</s>"}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 1795303\n"
SNIPPETS = (
    *("Hello", " ", "  ", "\n", "\n\n", "\t", "the bread", "12,345.67", "...", "<", "a", "aaaa", "==", "if (x) {\r\n"),
    *("Über", "naïve café", "Привет", "こんにちは世界", "한국어", "नमस्ते", "👍🏽", "👩‍👩‍👧", "e\u0301", "\u00a0", "▁"),
    *("</s>", "<s>", "<unk>", "<0x0A>", "[INST]", "<tool>", "hello world", "<|im_end|>"),
)
TEXTS = ("", *SNIPPETS, *map("".join, itertools.product(SNIPPETS, repeat=2)), *sentencepiece_model.SAMPLES)


def byte_level() -> Tokenizer:
    """With `<s>`, `</s>` and so on as special tokens, and `bread` as an ordinary added one."""
    tokenizer: Tokenizer = train_tokenizer(shipped_text(), 600).backend_tokenizer
    tokenizer.add_tokens([AddedToken("bread", special=False)])
    tokenizer.add_special_tokens([AddedToken("<tool>", special=True)])
    return tokenizer


def like_llama(metaspace: bool) -> Tokenizer:
    """A byte-fallback BPE as Llama-2's and Mistral's tokenizer.json have it: the older form, or with Metaspace."""
    control = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    merges = [
        part.split() for part in ("▁ H", "e l", "▁H el", "l o", "▁Hel lo", "▁ b", "r e", "▁b re", "a d", "▁bre ad")
    ]
    pieces = [*control, *"▁abcdefghijklmnopqrstuvwxyzH.,", *("".join(merge) for merge in merges)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [(one, other) for one, other in merges], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control[:3]])
    return tokenizer


def sentencepiece_bpe(**options: Any) -> bytes:
    """A model of 600 pieces, trained as Llama's and Mistral's were."""
    model = io.BytesIO()
    texts = [line for text in shipped_text() for line in text.splitlines()]
    defaults = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    spaces = {"remove_extra_whitespaces": False, "vocab_size": 600, "minloglevel": 2, "num_threads": 1}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, **defaults | spaces | options
    )
    return model.getvalue()


def checkpoint(parent: Path, tokenizer: Tokenizer | None = None, name: str = "checkpoint", **files: Any) -> Path:
    """A checkpoint without weights: a tokenizer, and JSON files by name without ending."""
    directory = parent / name
    directory.mkdir()
    size = tokenizer.get_vocab_size() if tokenizer else 32000
    for file, content in {"config": {"model_type": "mistral", "vocab_size": size}, **files}.items():
        write_json(directory / f"{file}.json", content)
    if tokenizer:
        tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def written(checkpoint: Path) -> Path:
    """The directory that both environments read: as a run has it, with the configuration beside the tokenizer."""
    directory = checkpoint.with_name(f"{checkpoint.name}_written")
    directory.mkdir()
    write_tokenizer(checkpoint, directory, "model.path")
    shutil.copy(checkpoint / "config.json", directory)
    return directory


def settings(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "tokenizer_config.json").read_text())


def refusal(checkpoint: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        write_tokenizer(checkpoint, checkpoint / "written", "model.path")
    assert not (checkpoint / "written").exists()
    message = str(error.value)
    assert message.startswith(f"model.path = {checkpoint}") and "\n" not in message
    return message
