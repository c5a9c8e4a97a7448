"""Prompts as token ids: one BOS, no special token out of a query, the same ids in both environments."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from sami_nemo.base_model.random_model import CHAT_TEMPLATE, train_tokenizer
from sami_nemo.base_model.tokenizer import write_tokenizer
from sami_nemo.errors import CheckpointError
from sami_nemo.prompts.tokenization import PromptTokenizer, special_texts
from sami_nemo.records import Constitution, Query
from sami_nemo.run_dir import write_json

ROOT = Path(__file__).parents[2]
BRIEF = Constitution("brief", ("Be brief.",))
QUERY = Query("1", "What do <s>, </s> and <|im_end|> mean in “café”?", "test")

TEXT = "The post says: write a response for the assistant. Summarize the post below. The post answers a human question."

# Prints what the tokenizer in argv[1] makes of the query, as JSON; run in either environment.
PROBE = """
import json, sys
from pathlib import Path
from sami_nemo.records import Constitution, Query
from sami_nemo.prompts.tokenization import PromptTokenizer
directory, constitution, query, cases = json.loads(sys.argv[1])
constitution, query = Constitution.from_json(constitution), Query(**query)
found = []
for task, chat_template in cases:
    tokenizer = PromptTokenizer.load(Path(directory), task, chat_template)
    found.append({
        "generation": tokenizer.encode_generation_prompt(constitution, query),
        "training": tokenizer.encode_training_prompt(constitution, query),
        "prefix": tokenizer.response_prefix_ids,
        "text": tokenizer.decode(tokenizer.encode_prompt("Summary:" + tokenizer.response_prefix)),
    })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def small() -> PreTrainedTokenizerFast:
    """Adds BOS by itself; BOS is id 1 ("<s>"), EOS 2 ("</s>")."""
    return train_tokenizer([TEXT], 320)


def probe(python: Path, directory: Path, cases: Sequence[tuple[str, bool]]) -> list[dict[str, Any]]:
    """What `python` makes of the query for each (task, chat_template)."""
    argument = json.dumps([str(directory), BRIEF.to_json(), QUERY.to_json(), cases])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [str(python), "-c", PROBE, argument]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("task", ["dialogue", "summary"])
@pytest.mark.parametrize("chat_template", [False, True])
def test_exactly_one_bos(small: PreTrainedTokenizerFast, task: Any, chat_template: bool) -> None:
    tokenizer = PromptTokenizer(small, task, chat_template)
    plain = Query("2", "Why?", "test")
    for ids in (tokenizer.encode_generation_prompt(BRIEF, plain), tokenizer.encode_training_prompt(BRIEF, plain)):
        assert ids[0] == small.bos_token_id
        assert ids.count(small.bos_token_id) == 1


def test_bos_is_added_where_template_and_tokenizer_leave_it_out(small: PreTrainedTokenizerFast) -> None:
    small.chat_template = CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
    try:
        without = PromptTokenizer(small, "dialogue", True).encode_prompt("Why?")
        small.chat_template = CHAT_TEMPLATE
        assert without == PromptTokenizer(small, "dialogue", True).encode_prompt("Why?")
    finally:
        small.chat_template = CHAT_TEMPLATE
    assert without[0] == small.bos_token_id


def test_special_tokens_in_a_query_stay_text(small: PreTrainedTokenizerFast) -> None:
    ids = PromptTokenizer(small, "dialogue", False).encode_training_prompt(BRIEF, QUERY)
    assert small.eos_token_id not in ids
    assert ids.count(small.bos_token_id) == 1
    assert QUERY.text in small.decode(ids)
    naive = small.encode(QUERY.text, add_special_tokens=False)
    assert small.eos_token_id in naive


def test_only_special_tokens_are_special(small: PreTrainedTokenizerFast) -> None:
    """An ordinary added token is a word that a query may hold, with a chat template as well."""
    tokenizer = copy.deepcopy(small)
    tokenizer.add_tokens(["bread"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<tool>"]})
    found = special_texts(tokenizer)
    assert {"<s>", "</s>", "<unk>", "<pad>", "<tool>"} <= set(found)
    assert "bread" not in found
    ids = PromptTokenizer(tokenizer, "dialogue", True).encode_prompt("How do I knead bread?")
    assert tokenizer.convert_tokens_to_ids("bread") in ids


def test_summary_prefix_is_the_tail_of_the_prompt(small: PreTrainedTokenizerFast) -> None:
    """A response is sampled after the same ids that training puts before it."""
    tokenizer = PromptTokenizer(small, "summary", False)
    assert tokenizer.response_prefix == " The post"
    prefix = tokenizer.response_prefix_ids
    assert small.decode(prefix) == " The post"
    assert tokenizer.encode_generation_prompt(BRIEF, QUERY)[-len(prefix) :] == prefix
    assert small.decode(tokenizer.encode_training_prompt(BRIEF, QUERY)).endswith("Summary:")


def test_other_prompts_have_no_prefix(small: PreTrainedTokenizerFast) -> None:
    assert PromptTokenizer(small, "dialogue", False).response_prefix_ids == ()
    assert PromptTokenizer(small, "dialogue", True).response_prefix_ids == ()


def test_cut_keeps_whole_tokens(small: PreTrainedTokenizerFast) -> None:
    tokenizer = PromptTokenizer(small, "dialogue", False)
    text = " Knead the dough, please.\n\nHuman: Thanks!"
    ids = tokenizer.encode_continuation(text)
    kept = tokenizer.cut(ids, "Knead the dough, please.")
    assert tokenizer.decode(kept).strip() == "Knead the dough, please."
    assert ids[: len(kept)] == kept
    assert not tokenizer.decode(kept[:-1]).strip().endswith("please.")


def test_cut_stops_before_a_token_that_says_more(small: PreTrainedTokenizerFast) -> None:
    tokenizer = PromptTokenizer(small, "dialogue", False)
    the_post = tokenizer.encode_continuation("The post")
    assert small.decode(the_post[-1:]) == " post"
    assert tokenizer.cut(the_post, "The po") == the_post[:-1]
    assert tokenizer.cut(the_post, "T") == the_post[:1], "never empty"


def test_chat_template_must_exist(small: PreTrainedTokenizerFast) -> None:
    small.chat_template = None
    try:
        with pytest.raises(
            CheckpointError, match=r"generate\.chat_template = True: the tokenizer has no chat template"
        ):
            PromptTokenizer(small, "dialogue", True)
    finally:
        small.chat_template = CHAT_TEMPLATE


@pytest.mark.slow
def test_both_environments_agree(generate_python: Path, tmp_path: Path) -> None:
    smollm2 = ROOT / "models" / "smollm2-135m"
    if smollm2.is_dir():
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copy(smollm2 / name, tmp_path)
    else:
        train_tokenizer([TEXT], 320).save_pretrained(tmp_path)
    cases = [("dialogue", False), ("summary", False), ("dialogue", True), ("summary", True)]
    assert probe(Path(sys.executable), tmp_path, cases) == probe(generate_python, tmp_path, cases)


@pytest.mark.slow
def test_mistrals_own_tokenizer(generate_python: Path, tmp_path: Path) -> None:
    """A sentencepiece model: it puts a space before every text, and " The post" must not get a second one."""
    library = generate_python.parents[1] / "lib"
    models = list(library.glob("python*/site-packages/mistral_common/data/tokenizer.model.v1"))
    if not models:
        pytest.skip("mistral-common is not in the generation environment")
    shutil.copy(models[0], tmp_path / "tokenizer.model")
    write_json(tmp_path / "config.json", {"model_type": "mistral", "vocab_size": 32000})
    write_tokenizer(tmp_path, tmp_path, "model.path")
    cases = [("dialogue", False), ("summary", False)]
    dialogue, summary = probe(generate_python, tmp_path, cases)
    assert [dialogue, summary] == probe(Path(sys.executable), tmp_path, cases)
    the, post = 415, 1704  # "▁The" and "▁post" in mistral-7b's vocabulary
    assert summary["prefix"] == [the, post]
    assert summary["generation"][-2:] == [the, post]
    assert summary["text"] == "Summary: The post"
    for found in (dialogue, summary):
        for ids in (found["training"], found["generation"]):
            assert ids.count(1) == 1
            assert ids[0] == 1
            assert 2 not in ids
