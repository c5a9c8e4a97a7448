"""The sampling stage with real vLLM on a random model: what it writes, and going on after kill -9."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.config.files import dump_config, parse_config
from sami_nemo.config.schema import Config
from sami_nemo.generate import sample
from sami_nemo.generate.requests import RequestPlan
from sami_nemo.progress import EVENTS_VARIABLE
from sami_nemo.prompts.tokenization import PromptTokenizer
from sami_nemo.records import Response
from sami_nemo.run_dir import RunDir, partial, read_json, read_jsonl, write_jsonl, write_text
from tests.checkpoints import give

ROOT = Path(__file__).parents[2]
PRINCIPLES = ROOT / "sami_nemo" / "constitution" / "principles"
CHUNK = 4
TIMEOUT = 900


def config(model: Path, runs_dir: Path, name: str, tensor_parallel: int = 1) -> Config:
    return parse_config(
        {
            "name": name,
            "recipe": "test",
            "seed": 0,
            "iterations": 2,
            "runs_dir": str(runs_dir),
            "model": {"name": "tiny", "architecture": "mistral", "path": str(model)},
            "data": {
                "name": "d",
                "format": "queries",
                "task": "dialogue",
                "source": "q.jsonl",
                "evaluation_queries": 3,
                "max_query_tokens": 64,
            },
            "principles": {"name": "p", "source": "file", "file": "dialogue_claude_opus"},
            "judge": {"name": "none", "method": "none"},
            "generate": {
                "max_tokens": 48,
                "chat_template": False,
                "dtype": "float32",
                "tensor_parallel": tensor_parallel,
                "max_model_len": 2048,
                "max_num_seqs": 3,
                "cpu_kv_cache_gib": 1,
                "chunk_requests": CHUNK,
                "oversample": 1.5,
            },
            "train": {"batch_size": 2, "batches": 2, "optimizer": "adamw", "lr": 1e-4},
            "evaluate": {"constitutions_per_query": 2},
            "logger": {},
            "hardware": {"name": "local", "accelerator": "cpu", "devices_per_node": 1},
        }
    )


def prepared_run(model: Path, runs_dir: Path, name: str, tensor_parallel: int = 1) -> RunDir:
    """A run whose queries are there. Iteration 1 needs 4 groups, so 6 of the 9 queries of its half are sampled."""
    settings = config(model, runs_dir, name, tensor_parallel)
    run_dir = RunDir(settings.run_dir)
    write_text(run_dir.config, dump_config(settings))
    write_text(run_dir.principles, (PRINCIPLES / "dialogue_claude_opus.yaml").read_text())
    for part, count in (("evaluation", 3), ("half_0", 9), ("half_1", 9)):
        texts = [f"How do I bake {number} loaves?" for number in range(count)]
        rows = ({"id": f"{part}-{i}", "text": text, "source": "test"} for i, text in enumerate(texts))
        write_jsonl(run_dir.queries / f"{part}.jsonl", rows)
    give(run_dir, model)
    return run_dir


def start(python: Path, run_dir: RunDir) -> subprocess.Popen[str]:
    command = [str(python), "-m", "sami_nemo.generate.sample", "--run-dir", str(run_dir.root), "--iteration", "0"]
    run_dir.events("sample_0").parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, EVENTS_VARIABLE: str(run_dir.events("sample_0"))}
    log = run_dir.log("sample_0").open("a")
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen[str], run_dir: RunDir) -> str:
    """Wait for the stage; it must succeed and leave no process behind. Returns what it printed."""
    returned = process.wait(TIMEOUT)
    printed = run_dir.log("sample_0").read_text()
    assert returned == 0, printed
    assert group_is_gone(process.pid), "a process of the stage is still there"
    return printed


def living(process_group: int) -> list[int]:
    """Processes of a group that run; not zombies that nobody has waited for."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            # The name, in parentheses, may contain spaces.
            state, _, group = (directory / "stat").read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(group) == process_group and state != "Z":
            found.append(int(directory.name))
    return found


def group_is_gone(process_group: int) -> bool:
    """Whether the last process of a group ends: each does after its step."""
    deadline = time.monotonic() + TIMEOUT
    while living(process_group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def wait_for_a_chunk(process: subprocess.Popen[str], file: Path) -> None:
    """Return as soon as `file` holds something; the next chunk is being sampled by then."""
    deadline = time.monotonic() + TIMEOUT
    while not (file.exists() and file.stat().st_size):
        assert process.poll() is None, "the stage ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(tiny_mistral: Path, generate_python: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run_dir = prepared_run(tiny_mistral, tmp_path_factory.mktemp("runs"), "undisturbed")
    finish(start(generate_python, run_dir), run_dir)
    return run_dir


def responses(run_dir: RunDir, name: str) -> list[Response]:
    return [Response.from_json(row) for row in read_jsonl(partial(run_dir.responses(0)) / f"{name}.jsonl")]


@pytest.mark.slow
def test_every_query_under_every_constitution(undisturbed: RunDir) -> None:
    evaluation, training = responses(undisturbed, "evaluation"), responses(undisturbed, "training")
    assert [r.query.id for r in evaluation] == [f"evaluation-{i}" for i in range(3) for _ in range(2)]
    assert [r.query.id for r in training] == [f"half_0-{i}" for i in range(6) for _ in range(2)]
    for first, second in zip(training[::2], training[1::2], strict=True):
        assert first.constitution.id != second.constitution.id
    events = [event for event in read_jsonl(undisturbed.events("sample_0")) if "done" in event]
    assert (events[-1]["done"], events[-1]["total"], events[-1]["unit"]) == (18, 18, "responses")
    assert events[-1]["tokens_per_s"] > 0
    report = read_json(partial(undisturbed.responses(0)) / "report.json")
    assert report["training"] == {"queries": 6, "requests": 12, "too_long": []}


@pytest.mark.slow
def test_responses_are_greedy_and_without_end_token(undisturbed: RunDir, tiny_mistral: Path) -> None:
    """transformers continues the same prompt ids with the same tokens."""
    import torch
    from transformers import MistralForCausalLM

    model = MistralForCausalLM.from_pretrained(tiny_mistral, dtype=torch.float32)
    tokenizer = PromptTokenizer.load(tiny_mistral, "dialogue", False)
    for response in responses(undisturbed, "training")[:4]:
        prompt_ids = tokenizer.encode_generation_prompt(response.constitution, response.query)
        assert response.prompt_tokens == len(prompt_ids)
        with torch.no_grad():
            prompt = torch.tensor([prompt_ids])
            whole = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=48)
        expected = whole[0, len(prompt_ids) :].tolist()
        if response.finish_reason == "stop":
            assert expected.pop() == model.config.eos_token_id
        assert response.token_ids == tuple(expected)
        text = tokenizer.decode(response.token_ids)
        if response.finish_reason == "length":
            # Cut inside a character of several bytes, vLLM leaves out what transformers marks.
            text = text.rstrip("\ufffd")
        assert response.text == text


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(
    undisturbed: RunDir, tiny_mistral: Path, generate_python: Path, tmp_path: Path
) -> None:
    run_dir = prepared_run(tiny_mistral, tmp_path, "killed")
    output = partial(run_dir.responses(0))
    process = start(generate_python, run_dir)
    wait_for_a_chunk(process, output / "evaluation.jsonl")
    process.kill()
    process.wait()
    # As if the next chunk had been half on its way to the disk.
    with (output / "evaluation.jsonl").open("ab") as file:
        left = len((output / "evaluation.jsonl").read_bytes().splitlines())
        file.write(b'{"query": {"id": "evaluat')
    assert left < 6 + 12
    printed = finish(start(generate_python, run_dir), run_dir)
    assert f"{CHUNK} of 18 responses are there" in printed or "6 of 18 responses are there" in printed
    for name in ("evaluation.jsonl", "training.jsonl", "report.json", "model.json"):
        assert (output / name).read_bytes() == (partial(undisturbed.responses(0)) / name).read_bytes(), name

    # Nothing is left to do: the model is not even loaded.
    before = run_dir.log("sample_0").read_text()
    printed = finish(start(generate_python, run_dir), run_dir).removeprefix(before)
    assert "loading" not in printed


@pytest.mark.slow
def test_workers_end_with_a_killed_stage(tiny_mistral: Path, generate_python: Path, tmp_path: Path) -> None:
    """Tensor parallelism runs a process per rank: kill -9 of the stage alone must not leave them behind."""
    run_dir = prepared_run(tiny_mistral, tmp_path, "parallel", tensor_parallel=2)
    process = start(generate_python, run_dir)
    wait_for_a_chunk(process, partial(run_dir.responses(0)) / "evaluation.jsonl")
    assert len(living(process.pid)) >= 3
    process.kill()
    process.wait()
    assert group_is_gone(process.pid)
    finish(start(generate_python, run_dir), run_dir)
    assert len(responses(run_dir, "training")) == 12


def test_only_the_same_model_and_settings_are_continued(tiny_mistral: Path, tmp_path: Path) -> None:
    output = tmp_path / "responses.partial"
    plans = {"evaluation": RequestPlan((), 0, ())}
    settings = config(tiny_mistral, tmp_path, "test")
    record = sample.model_record(settings, tiny_mistral, plans)
    sample.open_output(output, record)
    (output / "evaluation.jsonl").write_text("kept\n")
    sample.open_output(output, sample.model_record(settings, tiny_mistral, plans))
    assert (output / "evaluation.jsonl").read_text() == "kept\n"

    other_model: dict[str, Any] = {**record, "sha256": "0" * 64}
    other_settings = sample.model_record(config(tiny_mistral, tmp_path, "test", tensor_parallel=2), tiny_mistral, plans)
    for other in (other_model, other_settings):
        (output / "evaluation.jsonl").write_text("of another\n")
        sample.open_output(output, other)
        assert not (output / "evaluation.jsonl").exists()
        assert read_json(output / "model.json") == other


def test_an_interrupted_stage_goes_on_with_its_own_limits(tiny_mistral: Path, tmp_path: Path) -> None:
    output = tmp_path / "responses.partial"
    record = sample.model_record(config(tiny_mistral, tmp_path, "test"), tiny_mistral, {})
    assert record["limits"] == {"max_num_seqs": 3, "cache_bytes": 2**30}
    earlier = {**record, "limits": {"max_num_seqs": 2, "cache_bytes": 2**29}}
    assert sample.open_output(output, earlier) == earlier
    (output / "evaluation.jsonl").write_text("kept\n")
    assert sample.open_output(output, record) == earlier
    assert (output / "evaluation.jsonl").read_text() == "kept\n"


ORDERS = """
import json, sys
from pathlib import Path
from sami_nemo.config.files import load_config
from sami_nemo.serving.engine import BatchLimits, Engine, prefix_order, set_environment
config, model = load_config(Path(sys.argv[1])), Path(sys.argv[2])
set_environment(config)
heads = [[1, *[10 + constitution] * 383] for constitution in range(6)]
prompts = [[*head, *range(60 + query, 80 + query)] for query in range(4) for head in heads]
with Engine(model, config, BatchLimits(max_num_seqs=1, cache_bytes=2080 * 2**10)) as engine:
    found = [engine.answer(prompts, lambda answer: None, order) for order in (prefix_order, lambda p: range(len(p)))]
print("ORDERS", json.dumps([[(a.token_ids, a.cached_tokens) for a in answers] for answers in found]))
"""


@pytest.mark.slow
def test_the_order_of_requests_changes_the_cache_and_no_answer(
    tiny_mistral: Path, generate_python: Path, tmp_path: Path
) -> None:
    """Four queries under six constitutions of 384 tokens, of which a cache of 65 blocks (1 KiB a token) holds five."""
    settings = tmp_path / "config.yaml"
    write_text(settings, dump_config(config(tiny_mistral, tmp_path, "orders")))
    command = [str(generate_python), "-c", ORDERS, str(settings), str(tiny_mistral)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("ORDERS ")]
    assert lines, done.stdout[-2000:] + done.stderr[-2000:]
    ordered, by_turns = json.loads(lines[0].removeprefix("ORDERS "))
    assert [ids for ids, _ in ordered] == [ids for ids, _ in by_turns]
    cached = [sum(tokens for _, tokens in answers) for answers in (ordered, by_turns)]
    # All but the first of a constitution find its whole head, 12 blocks; by turns, it is gone when it comes again.
    assert cached[0] == 6 * 3 * 384
    assert cached[1] < cached[0] / 4
