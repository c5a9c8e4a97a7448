"""tools/inspect_groups.py on a run made by hand, with a real tokenizer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.config.files import dump_config
from sami_nemo.prompts.tokenization import PromptTokenizer
from sami_nemo.records import Constitution, ContrastGroup, Query
from sami_nemo.run_dir import RunDir, write_jsonl, write_text
from tests.checkpoints import give

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tiny_mistral: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    runs = tmp_path_factory.mktemp("runs")
    config = compose(["recipe=sami_debug", "name=made", f"runs_dir={runs}", f"model.path={tiny_mistral}"])
    run = RunDir(config.run_dir)
    write_text(run.config, dump_config(config))
    give(run, tiny_mistral)
    tokenizer = PromptTokenizer.load(tiny_mistral, "dialogue", chat_template=False)
    query = Query("q:1", "Why?", "q")
    constitutions = (Constitution("kind", ("Be kind.",)), Constitution("not kind", ("Be rude.",)))
    responses = ("Because I care.", "Go away.")
    group = ContrastGroup(
        query,
        constitutions,
        tuple(tokenizer.encode_training_prompt(constitution, query) for constitution in constitutions),
        tuple(tokenizer.encode_response(text) for text in responses),
        responses,
    )
    write_jsonl(run.groups(0) / "evaluation.jsonl", [group.to_json()])
    matrix = [[-1.0, -2.0], [-2.5, -1.25]]
    write_jsonl(run.evaluation(0) / "groups.jsonl", [{"query_id": "q:1", "logprobs": matrix}])
    return run


def inspect(run: RunDir, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/inspect_groups.py", str(run.root), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_prompts_masks_and_matrix(run: RunDir) -> None:
    done = inspect(run)
    assert done.returncode == 0, done.stderr
    assert "=== q:1: Why?" in done.stdout
    assert ">>> Because I care.<<<" in done.stdout and "1. Be rude." in done.stdout
    assert "-2.500    -1.250   not kind" in done.stdout and "nats" in done.stdout


def test_what_is_not_there_is_one_line(run: RunDir) -> None:
    for words, expected in ((["--iteration", "1"], "no such file"), (["--query", "q:2"], "the first is q:1")):
        done = inspect(run, *words)
        assert done.returncode == 2 and expected in done.stderr.splitlines()[-1] and done.stdout == ""
