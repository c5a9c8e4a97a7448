"""Tokenizers of other people's checkpoints: both environments load the same, with the ids that they were made with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sami_nemo.base_model.random_model import CHAT_TEMPLATE
from tests.unit.other_tokenizers import (
    LFS,
    NAMES,
    TEXTS,
    byte_level,
    checkpoint,
    like_llama,
    refusal,
    sentencepiece_bpe,
    settings,
    written,
)

ROOT = Path(__file__).parents[2]
FEW = ("Hello </s> bread <tool>x", " sourbread  breads\n", "Ünï 👍 <s>bread</s> <|im_end|>", "x<tool> <mask> y")

# Prints what AutoTokenizer and the product's prompts make of each directory; run in either environment.
PROBE = """
import json, sys
from pathlib import Path
from transformers import AutoTokenizer
from sami_nemo.prompts.tokenization import PromptTokenizer, special_texts
from sami_nemo.records import Constitution, Query
directories, texts = json.load(sys.stdin)
names = ("bos_token", "eos_token", "unk_token", "pad_token")
found = {}
for directory in directories:
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    chat = bool(tokenizer.chat_template)
    prompts = PromptTokenizer(tokenizer, "dialogue", chat)
    query = [Query("1", text, "test") for text in texts]
    found[Path(directory).name] = {
        "named": {name: (getattr(tokenizer, name), getattr(tokenizer, name + "_id")) for name in names},
        "special": sorted(special_texts(tokenizer)),
        "all_special": sorted(tokenizer.all_special_tokens),
        "ids": [tokenizer.encode(text, add_special_tokens=False) for text in texts],
        "with_special": [tokenizer.encode(text) for text in texts],
        "split": [tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True) for text in texts],
        "prompts": [prompts.encode_training_prompt(Constitution("a", ("Be brief.",)), each) for each in query],
        "decoded": [tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) for text in texts],
        "chat": tokenizer.apply_chat_template([{"role": "user", "content": "Why?"}], tokenize=False) if chat else None,
    }
print(json.dumps(found))
"""
# Saves the tokenizer in argv[1] to argv[2], as the environment's transformers does.
SAVE = """
import sys
from transformers import AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])
"""


def run(python: Path | str, program: str, *arguments: Path, stdin: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [str(python), "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def beside(**settings: Any) -> dict[str, Any]:
    """A tokenizer_config.json that names BOS and EOS, and more."""
    return {"tokenizer_config": {**NAMES, **settings}}


LIKE_LLAMA = beside(tokenizer_class="LlamaTokenizer", unk_token="<unk>", add_bos_token=True)["tokenizer_config"]
MASK = {"content": "<mask>", "lstrip": True, "special": True}
CONFIG = {"model_type": "mistral", "vocab_size": 700}
FORMS: dict[str, dict[str, Any]] = {
    "version_5": beside(tokenizer_class="TokenizersBackend", backend="tokenizers"),
    "unknown_class": beside(tokenizer_class="TheirOwnTokenizer", auto_map={"AutoTokenizer": ["a.B", None]}),
    "no_class": beside(),
    "extra_list": beside(tokenizer_class="TokenizersBackend", extra_special_tokens=["<mask>"]),
    "extra_names": beside(extra_special_tokens={"image_token": "<mask>"}),
    "own_name": beside(image_token="<mask>"),
    "additional": beside(additional_special_tokens=[MASK]),
    "decoder": beside(added_tokens_decoder={"602": MASK, "603": {"content": "knead", "special": False}}),
    "added_tokens": {**beside(), "added_tokens": {"<mask>": 602, "knead": 603}},
    "map_only": {"special_tokens_map": {**NAMES, "pad_token": {"content": "</s>", "lstrip": False}}},
    "objects": beside(eos_token={"__type": "AddedToken", "content": "</s>"}, bos_token={"content": "<s>"}),
    "config_ids": {"tokenizer_config": {"eos_token": None}, "config": CONFIG | {"bos_token_id": 1, "eos_token_id": 2}},
    "generation_ids": {"generation_config": {"bos_token_id": 1, "eos_token_id": [2, 0]}},
    "prefix_space": beside(add_prefix_space=True, tokenizer_class="GPT2Tokenizer"),
}


@pytest.mark.slow
def test_both_environments_load_the_same(generate_python: Path, tmp_path: Path) -> None:
    sources = {}
    for name, files in FORMS.items():
        sources[name] = checkpoint(tmp_path, byte_level(), name, **{"config": CONFIG} | files)
    for name, stated in {"llama": {"legacy": True}, "metaspace": {"legacy": False, "add_prefix_space": True}}.items():
        tokenizer = like_llama(metaspace=name == "metaspace")
        sources[name] = checkpoint(tmp_path, tokenizer, name, tokenizer_config={**LIKE_LLAMA, **stated})
    for name, legacy in {"spm_legacy": True, "spm_once": False}.items():
        added = {"<|im_end|>": 600, "knead": 601}
        sources[name] = checkpoint(tmp_path, name=name, added_tokens=added, tokenizer_config={"legacy": legacy})
        (sources[name] / "tokenizer.model").write_bytes(sentencepiece_bpe(user_defined_symbols=["<tool>"]))
    sources["saved"] = sources["version_5"].with_name("saved")
    (sources["extra_list"] / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    run(generate_python, SAVE, sources["extra_list"], sources["saved"])
    shutil.copy(sources["extra_list"] / "config.json", sources["saved"])
    assert settings(sources["saved"])["tokenizer_class"] == "TokenizersBackend"

    directories = {name: written(source) for name, source in sources.items()}
    stdin = json.dumps([[*map(str, directories.values())], FEW])
    four, five = (
        json.loads(run(python, PROBE, stdin=stdin).splitlines()[-1]) for python in (sys.executable, generate_python)
    )
    for name, directory in directories.items():
        one, other = four[directory.name], five[directory.name]
        assert one == other, name
        assert one["named"]["bos_token"] == ["<s>", 1] and one["named"]["eos_token"] == ["</s>", 2], name
        assert one["special"] == one["all_special"], name
        assert "bread" not in one["special"] and "knead" not in one["special"], name
        if name in ("extra_list", "extra_names", "own_name", "additional", "decoder", "saved"):
            assert "<mask>" in one["special"], name
        raw = Tokenizer.from_file(str(directory / "tokenizer.json"))
        assert one["ids"] == [raw.encode(text, add_special_tokens=False).ids for text in FEW], name
        if name in ("version_5", "unknown_class", "llama", "metaspace"):
            source = Tokenizer.from_file(str(sources[name] / "tokenizer.json"))
            assert one["ids"] == [source.encode(text, add_special_tokens=False).ids for text in FEW], name
    tool, mask = 601, 602  # which takes the space on its left
    assert four["additional_written"]["ids"][-1][1:3] == [tool, mask]
    assert four["saved_written"]["chat"].startswith("<s>")
    assert four["saved_written"]["ids"] == four["extra_list_written"]["ids"]


def test_version_4_itself_gives_the_same_ids(tmp_path: Path) -> None:
    """Where it can load a checkpoint as it is."""
    sources = [
        checkpoint(
            tmp_path,
            byte_level(),
            f"prefix_{stated}",
            tokenizer_config={**NAMES, "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": stated},
        )
        for stated in (True, False)
    ]
    sources += [
        checkpoint(
            tmp_path,
            like_llama(metaspace),
            f"llama_{metaspace}",
            tokenizer_config={**LIKE_LLAMA, "legacy": not metaspace},
        )
        for metaspace in (True, False)
    ]
    sources.append(
        checkpoint(
            tmp_path, byte_level(), "plain", tokenizer_config={**NAMES, "tokenizer_class": "PreTrainedTokenizerFast"}
        )
    )
    for source in sources:
        own, ours = (AutoTokenizer.from_pretrained(each) for each in (source, written(source)))
        assert type(ours) is PreTrainedTokenizerFast
        for split in (False, True):
            options = {"add_special_tokens": False, "split_special_tokens": split}
            assert [ours.encode(text, **options) for text in TEXTS] == [own.encode(text, **options) for text in TEXTS]
        assert (ours.bos_token_id, ours.eos_token_id) == (own.bos_token_id, own.eos_token_id)


def test_a_space_before_the_text_is_what_the_checkpoint_says(tmp_path: Path) -> None:
    """Version 4's plain class takes it away where it is not stated beside tokenizer.json."""
    tokenizer = byte_level()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    found = written(checkpoint(tmp_path, tokenizer, tokenizer_config=NAMES))
    ours = AutoTokenizer.from_pretrained(found)
    assert ours.encode("the", add_special_tokens=False) == byte_level().encode(" the", add_special_tokens=False).ids


def test_mistrals_words_are_mended_where_the_checkpoint_asks_for_it(tmp_path: Path) -> None:
    tokenizer = byte_level()
    words = pre_tokenizers.Split(Regex(r"\w+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False, use_regex=False)])
    for asked in (True, False):
        source = checkpoint(
            tmp_path, tokenizer, f"asked_{asked}", tokenizer_config={**NAMES, "fix_mistral_regex": asked}
        )
        state = json.loads((written(source) / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
        assert ("Lu" in state[0]["pattern"]["Regex"]) == asked and state[1]["type"] == "ByteLevel"


def test_special_tokens_are_found_wherever_they_are_named(tmp_path: Path) -> None:
    for name, files in FORMS.items():
        source = checkpoint(tmp_path, byte_level(), name, **{"config": {"vocab_size": 700}} | files)
        found = settings(written(source))
        assert (found["bos_token"], found["eos_token"]) == ("<s>", "</s>"), name
        assert found["tokenizer_class"] == "PreTrainedTokenizerFast", name


@pytest.mark.parametrize("stated", [{}, {"tokenizer_class": "LlamaTokenizerFast"}])
def test_llamas_class_has_a_bos_that_need_not_be_named(tmp_path: Path, stated: Any) -> None:
    config = {"model_type": "mistral", "vocab_size": 700, "eos_token_id": 2}
    source = checkpoint(tmp_path, like_llama(metaspace=False), config=config, tokenizer_config=stated)
    found = settings(written(source))
    assert [found[name] for name in ("bos_token", "eos_token", "unk_token")] == ["<s>", "</s>", "<unk>"]
    own = AutoTokenizer.from_pretrained(source)
    assert [own.bos_token, own.eos_token, own.unk_token] == ["<s>", "</s>", "<unk>"]


def test_a_token_that_is_named_special_is_special(tmp_path: Path) -> None:
    stated = {**NAMES, "additional_special_tokens": ["bread"]}
    found = written(checkpoint(tmp_path, byte_level(), tokenizer_config=stated))
    added = json.loads((found / "tokenizer.json").read_text())["added_tokens"]
    assert {token["content"] for token in added if token["special"]} >= {"bread", "<s>", "</s>", "<tool>"}


def test_no_bos_where_the_checkpoint_says_none(tmp_path: Path) -> None:
    """transformers writes bos_token_id = 1 into a config.json whatever the tokenizer is."""
    config = {"vocab_size": 700, "bos_token_id": 1, "eos_token_id": 2}
    stated = checkpoint(tmp_path, byte_level(), "stated", config=config, tokenizer_config={"bos_token": None})
    assert "bos_token" not in settings(written(stated))
    ordinary = checkpoint(
        tmp_path,
        byte_level(),
        "ordinary",
        config={**config, "bos_token_id": 300},
        tokenizer_config={"tokenizer_class": "TokenizersBackend"},
    )
    assert "bos_token" not in settings(written(ordinary))


@pytest.mark.parametrize(
    ("stated", "file"),
    [
        (CHAT_TEMPLATE, None),
        ([{"name": "tool_use", "template": "other"}, {"name": "default", "template": CHAT_TEMPLATE}], None),
        ("other", CHAT_TEMPLATE),
        (None, CHAT_TEMPLATE),
    ],
)
def test_a_chat_template_is_found(tmp_path: Path, stated: Any, file: str | None) -> None:
    source = checkpoint(tmp_path, byte_level(), tokenizer_config={**NAMES, "chat_template": stated})
    if file:
        (source / "chat_template.jinja").write_text(file)
    assert (written(source) / "chat_template.jinja").read_text() == CHAT_TEMPLATE


def test_settings_left_from_a_training_are_not_kept(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=16)
    tokenizer.model.dropout = 0.5
    found = Tokenizer.from_file(
        str(written(checkpoint(tmp_path, tokenizer, tokenizer_config=NAMES)) / "tokenizer.json")
    )
    ids = byte_level().encode("How do I knead the dough?", add_special_tokens=False).ids
    assert found.encode("How do I knead the dough?", add_special_tokens=False).ids == ids and len(ids) > 4


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.json", LFS, "its tokenizer.json is a Git LFS pointer"),
        ("tokenizer.json", b"", "its tokenizer.json is empty"),
        ("tokenizer.json", b'{"version": "1.0", "model": {"ty', "its tokenizer.json is damaged or cut off"),
        ("tokenizer.json", b"[1, 2]", "its tokenizer.json is not a JSON object"),
        ("tokenizer.json", b"{}", "its tokenizer.json is no tokenizer"),
        ("tokenizer.json", b'{"hidden_size": 1, "vocab_size": 2}', "its tokenizer.json is no tokenizer"),
        ("tokenizer.json", b"\x80\x02\xff", "its tokenizer.json cannot be read"),
        ("tokenizer_config.json", LFS, "its tokenizer_config.json is a Git LFS pointer"),
        ("tokenizer_config.json", b'{"eos_token": 2}', "in the place of a token's text"),
        (
            "tokenizer_config.json",
            b'{"eos_token": "</s>", "chat_template": [1]}',
            "its chat_template is neither text",
        ),
        ("chat_template.jinja", LFS, "its chat_template.jinja is a Git LFS pointer"),
        ("tokenizer_config.json", b'{"eos_token": "<end>"}', "its eos_token '<end>' is not in the vocabulary"),
        ("tokenizer_config.json", b'{"bos_token": "<s>"}', "names no token that ends a text"),
        ("config.json", b'{"vocab_size": 601}', "has the id 601 ('<tool>'), and its config.json a vocab_size of 601"),
        ("added_tokens.json", b'{"<mask>": 700}', "gives '<mask>' the id 700, and its vocabulary has it at 602"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, file: str, content: bytes, reason: str) -> None:
    source = checkpoint(tmp_path, byte_level(), tokenizer_config=NAMES)
    (source / file).write_bytes(content)
    assert reason in refusal(source)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("tokenizer.model", LFS, "is no sentencepiece model"),
        ("tokenizer.model", b"", "is no sentencepiece model"),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n", "is no sentencepiece model"),
        ("tekken.json", b"{}", "has only tekken.json, which is Mistral's own format; copy the model's tokenizer.json"),
        ("vocab.json", b"{}", "needs a tokenizer.json or tokenizer.model, and has none"),
    ],
)
def test_no_tokenizer_is_one_line(tmp_path: Path, file: str, content: bytes, reason: str) -> None:
    source = checkpoint(tmp_path, tokenizer_config=NAMES)
    (source / file).write_bytes(content)
    assert reason in refusal(source)
