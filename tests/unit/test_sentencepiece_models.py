"""Checkpoints with a sentencepiece model alone: its ids are kept, or it is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from tokenizers import Tokenizer

from tests.unit.other_tokenizers import (
    TEXTS,
    checkpoint,
    refusal,
    sentencepiece_bpe,
    written,
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"user_defined_symbols": ["[INST]", "<tool>", "hello world", "<"]},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"byte_fallback": False},
        {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("legacy", [True, False])
def test_a_sentencepiece_model_keeps_its_ids(tmp_path: Path, options: Any, legacy: bool) -> None:
    source = checkpoint(tmp_path, tokenizer_config={"legacy": legacy, "tokenizer_class": "LlamaTokenizer"})
    (source / "tokenizer.model").write_bytes(sentencepiece_bpe(**options))
    tokenizer = Tokenizer.from_file(str(written(source) / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    reference = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    found = [encoding.ids for encoding in tokenizer.encode_batch(TEXTS, add_special_tokens=False)]
    assert found == reference.encode(list(TEXTS))
    assert len(TEXTS) > 900
    for text, ids in zip(TEXTS, found, strict=True):
        if reference.unk_id() not in ids and "▁" not in text:
            assert tokenizer.decode(ids, skip_special_tokens=False) == reference.decode(ids)


def test_a_control_piece_between_symbols_stays_text(tmp_path: Path) -> None:
    """Parts of a text between user-defined symbols are looked up as a whole."""
    source = checkpoint(tmp_path)
    (source / "tokenizer.model").write_bytes(sentencepiece_bpe(user_defined_symbols=["[INST]"]))
    tokenizer = Tokenizer.from_file(str(written(source) / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    reference = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    for text in ("[INST]</s>[INST]", "[INST]<0x0A>[INST]", "</s>[INST]</s>"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert ids == reference.encode(text) and reference.eos_id() not in ids


def test_spaces_after_special_tokens_are_as_the_checkpoint_says(tmp_path: Path) -> None:
    model = sentencepiece_bpe()
    parts = {}
    for legacy in (True, False):
        source = checkpoint(tmp_path, name=f"legacy_{legacy}", tokenizer_config={"legacy": legacy})
        (source / "tokenizer.model").write_bytes(model)
        tokenizer = Tokenizer.from_file(str(written(source) / "tokenizer.json"))
        parts[legacy] = tokenizer.encode("Why?</s>Why?</s> Why?").tokens
    first = parts[True][1 : parts[True].index("</s>")]
    assert parts[True] == ["<s>", *first, "</s>", *first, "</s>", "▁", *first]
    bare = ["".join(first).removeprefix("▁")]
    assert "".join(parts[False]) == "".join(["<s>", *first, "</s>", *bare, "</s>", *first])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "it is no BPE model"),
        ({"model_type": "char", "vocab_size": 400, "hard_vocab_limit": False}, "it is no BPE model"),
        ({"treat_whitespace_as_suffix": True}, "its spaces are suffixes"),
        ({"normalization_rule_name": "nmt_nfkc"}, "get other ids than sentencepiece gives them"),
    ],
    ids=str,
)
def test_what_cannot_be_converted_is_refused(tmp_path: Path, options: Any, reason: str) -> None:
    source = checkpoint(tmp_path)
    (source / "tokenizer.model").write_bytes(sentencepiece_bpe(**options))
    message = refusal(source)
    assert reason in message and "put the model's own tokenizer.json beside it" in message


def test_a_model_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    source = checkpoint(tmp_path)
    whole = sentencepiece_bpe()
    for length in (1, 100, len(whole) // 2, len(whole) - 1):
        (source / "tokenizer.model").write_bytes(whole[:length])
        assert "is no sentencepiece model" in refusal(source)


@pytest.mark.slow
def test_mistrals_own_models(generate_python: Path, tmp_path: Path) -> None:
    """Those that the hub has without a tokenizer.json, and one with user-defined symbols."""
    library = generate_python.parents[1] / "lib"
    models = sorted(library.glob("python*/site-packages/mistral_common/data/*tokenizer*.model.v[13]"))
    if not models:
        pytest.skip("mistral-common is not in the generation environment")
    for i, model in enumerate(models):
        source = checkpoint(tmp_path, name=f"model_{i}", config={"model_type": "mistral", "vocab_size": 32768})
        shutil.copy(model, source / "tokenizer.model")
        tokenizer = Tokenizer.from_file(str(written(source) / "tokenizer.json"))
        tokenizer.encode_special_tokens = True
        reference = sentencepiece.SentencePieceProcessor(model_file=str(model))
        found = [encoding.ids for encoding in tokenizer.encode_batch(TEXTS, add_special_tokens=False)]
        assert found == reference.encode(list(TEXTS)), model
