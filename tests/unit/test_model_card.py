"""Model cards: what stands in them, that they are the same each time, and where numbers may be."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from sami_nemo.config.files import dump_config
from sami_nemo.config.schema import Config
from sami_nemo.constitution.principles import SHIPPED, load_principles
from sami_nemo.model_card import FRONT_MATTER, Result, base_license, model_card
from sami_nemo.prompts.templates import training_prompt
from sami_nemo.report.card import write_cards
from sami_nemo.run_dir import RunDir, write_json, write_text
from tests.unit.test_config import config_with
from tests.unit.test_report import make_run

PRINCIPLES = load_principles("dialogue_claude_opus")
VERSIONS = {"torch": "2.13.0", "transformers": "4.57.6"}


def card(config: Config, license: dict[str, Any] | None = None, results: tuple[Result, ...] = ()) -> str:
    return model_card(config, PRINCIPLES, 2, license or {}, VERSIONS, results)


def front(text: str) -> dict[str, Any]:
    found = FRONT_MATTER.match(text)
    assert found
    return yaml.safe_load(found[1])


def test_front_matter() -> None:
    text = card(config_with({}))
    assert front(text) == {
        "base_model": "someone/mixture",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["sami", "alignment"],
    }
    assert "License: see the base model" in text
    licensed = card(config_with({}), {"license": "apache-2.0"})
    assert front(licensed)["license"] == "apache-2.0" and "see the base model" not in licensed


def test_settings_principles_and_citation() -> None:
    text = card(config_with({"train.kl_beta": 0.1}))
    for line in (
        "Iteration 2 of 3",
        "| batch size (queries) | 16 |",
        "| gradient steps of this iteration | 4 |",
        "| constitutions per query (N_c) | 2 |",
        "| learning rate | 0.0001 |",
        "| optimizer | adamw |",
        "| precision | bf16, fp32 master weights |",
        "| layout | shared_prefix |",
        "| KL penalty to the base model | 0.1 |",
        "Data: queries.jsonl, split train; task: dialogue.",
        "- torch 2.13.0",
        "arXiv:2404.14313",
    ):
        assert line in text
    for principle in PRINCIPLES.principles:
        for statement in principle.statements:
            kind = "antithesis" if statement.antithesis else "principle"
            assert f"  - {kind} ({statement.label}): {statement.text}\n" in text


@pytest.mark.parametrize("task", ["dialogue", "summary"])
@pytest.mark.parametrize("chat", [False, True])
def test_the_exact_prompt(task: Any, chat: bool) -> None:
    text = card(config_with({"data.task": task, "generate.chat_template": chat}))
    prompt = training_prompt(task, PRINCIPLES.desired.text, "{query}", chat)
    assert text.split("```text\n")[1].split("\n```")[0] == prompt
    assert ("apply_chat_template" in text) == chat
    code = text.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert len(code.splitlines()) == 6
    assert ('prompt + " The post"' in code) == (task == "summary" and not chat)


def test_the_example_asks_what_training_asked(tiny_mistral: Path) -> None:
    from transformers import AutoTokenizer

    from sami_nemo.prompts.tokenization import PromptTokenizer
    from sami_nemo.records import Query

    tokenizer = AutoTokenizer.from_pretrained(tiny_mistral)
    for chat in (False, True):
        text = card(config_with({"generate.chat_template": chat}))
        prompt = text.split("```text\n")[1].split("\n```")[0].replace("{query}", "How do I bake bread?")
        line = next(line for line in text.splitlines() if line.startswith("inputs = "))
        names = {"tokenizer": tokenizer, "prompt": prompt}
        exec(line.replace('"pt"', '"np"'), names)
        query = Query("q", "How do I bake bread?", "s")
        expected = PromptTokenizer(tokenizer, "dialogue", chat).encode_training_prompt(PRINCIPLES.desired, query)
        assert tuple(names["inputs"]["input_ids"][0]) == expected


def test_without_numbers_unless_given_and_the_same_each_time() -> None:
    config = config_with({})
    text = card(config)
    assert "Results" not in text and text == card(config)
    result = Result("bound (nats)", "0.512", "0.031", "250")
    assert "| bound (nats) | 0.512 | 0.031 | 250 |" in card(config, results=(result,))


def test_paths_of_this_machine_are_not_told(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    text = card(config_with({"model.path": str(base), "data.source": str(tmp_path / "q.jsonl"), "runs_dir": str(base)}))
    assert str(tmp_path) not in text and front(text)["base_model"] == "mixture"


def test_a_fence_that_the_prompt_cannot_end(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(SHIPPED.joinpath("dialogue_claude_opus.yaml").read_text().replace("vague", "```vague```"))
    own.write_text(own.read_text().replace("depth", "```depth```"))
    text = model_card(config_with({}), load_principles(str(own)), 1, {}, VERSIONS)
    assert text.count("\n````") == 2


@pytest.mark.parametrize(
    ("content", "license"),
    [
        ("---\nlicense: mit\nbase_model: x\n---\ntext", {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: own\nlicense_link: https://x\n---\n",
            {"license": "other", "license_name": "own", "license_link": "https://x"},
        ),
        ("---\nlicense: [\n---\n", {}),
        ("license: mit", {}),
        (None, {}),
    ],
)
def test_license_of_the_base_model(tmp_path: Path, content: str | None, license: dict[str, str]) -> None:
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    assert base_license(tmp_path) == license


def ready_run(root: Path, **made: Any) -> tuple[Config, RunDir]:
    """The run of test_report.py with a configuration and principles."""
    run, config = make_run(root, **made), config_with({})
    write_text(run.config, dump_config(config))
    shutil.copy(SHIPPED / "dialogue_claude_opus.yaml", run.principles)
    write_json(run.manifest("train_1"), {"stage": "train_1", "finished": "2026-01-02", "versions": VERSIONS})
    return config, run


def test_numbers_beside_the_report(tmp_path: Path) -> None:
    config, run = ready_run(tmp_path / "run")
    write_text(run.report / "model_card_7.md", "of an iteration that is gone")
    write_cards(config, run)
    assert [path.name for path in run.report.iterdir()] == ["model_card_1.md"]
    text = (run.report / "model_card_1.md").read_text(encoding="utf-8")
    for row in (
        "| bound (nats, at most 0.693) | 0.375 | 0.013 | 16 |",
        "| gain over iteration 0 (nats) | 0.250 | 0.020 | 16 |",
        "| response tokens | 41.5 | 0.5 | 32 |",
        "| win rate against base, length-corrected (PMI proxy) | 0.688 | 0.090 | 16 |",
        "| win rate against base, uncorrected (PMI proxy) | 0.750 | 0.062 | 16 |",
        "| win rate against instruct, uncorrected (PMI proxy) | 0.375 | 0.062 | 16 |",
    ):
        assert row in text
    assert "instruct, length-corrected" not in text
    # But for the results it is the card of the export.
    before, _, after = text.partition("## Results")
    export = model_card(config, PRINCIPLES, 1, {}, VERSIONS)
    assert before + after[after.index("## Prompt") :] == export


def test_no_card_of_the_base_model(tmp_path: Path) -> None:
    config, run = ready_run(tmp_path / "run", iterations=0, judged=False)
    run.principles.unlink()
    write_cards(config, run)
    assert not list(run.report.glob("model_card*"))
