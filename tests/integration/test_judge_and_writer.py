"""Principle writer and judge against vLLM's real OpenAI-compatible server, through the whole launcher.

The random model answers, but not as it was asked to: what is tested is that every part talks to the next, that replies
that cannot be used are counted or shown, and that nothing is left behind. (What is made of usable ones: tests/unit.)
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from sami_nemo.base_model import random_model
from sami_nemo.config.compose import compose
from sami_nemo.config.files import dump_config
from sami_nemo.endpoint import Endpoint, Reply
from sami_nemo.errors import EndpointError
from sami_nemo.run_dir import read_json, read_jsonl

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
TIMEOUT = 900
KEY = "sk-a-secret-that-nobody-should-see"
SERVE = """
import sys, time
from pathlib import Path
from sami_nemo.config.files import load_config
from sami_nemo.serving.server import serve
config, model, address = map(Path, sys.argv[1:])
with serve(model, load_config(config)) as (url, name):
    address.with_suffix(".partial").write_text(f"{url} {name}")
    address.with_suffix(".partial").rename(address)
    time.sleep(3600)
"""


@pytest.fixture(scope="module")
def server(
    generate_python: Path, tiny_mistral: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """URL and name of a model behind vLLM's server; stopped as a stage is, which is a part of the test."""
    directory = tmp_path_factory.mktemp("server")
    address, log = directory / "address", directory / "log"
    # Its small vocabulary makes long prompts.
    settings = ["generate.max_num_seqs=8", "generate.max_model_len=4096", "generate.dtype=float32"]
    (directory / "config.yaml").write_text(dump_config(compose(settings)))
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(generate_python), "-c", SERVE, str(directory / "config.yaml"), str(tiny_mistral), str(address)],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + TIMEOUT
        while not address.exists():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        url, name = address.read_text().split()
        yield url, name
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", urlsplit(url).port or 0)) != 0, "the server outlives its context"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def launch(workspace: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    launcher = str(REPOSITORY / "launcher_scripts" / "main.py")
    places = [f"runs_dir={workspace}", f"model.path={workspace}/tiny-random"]
    return subprocess.run(
        [sys.executable, launcher, "recipe=sami_debug", *places, *overrides],
        env={**os.environ, "JUDGE_KEY": KEY},
        cwd=workspace,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def test_a_run_with_judge_and_instruct_baseline(server: tuple[str, str], tmp_path: Path) -> None:
    url, name = server
    instruct = tmp_path / "instruct"
    instruct.mkdir()
    # Of another seed than the base model, so that it answers differently.
    random_model.build(instruct, random_model.geometry(), seed=1)
    judge = ["judge=endpoint", f"judge.base_url={url}", f"judge.model={name}", "judge.api_key_variable=JUDGE_KEY"]
    small = ["iterations=1", "data.evaluation_queries=2", "judge.max_tokens=24", "judge.both_orders=true"]
    done = launch(tmp_path, "name=judged", *judge, *small, f"evaluate.instruct={instruct}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    run = tmp_path / "judged"
    base, first = read_json(run / "metrics.json")["iterations"]
    assert list(base["win_rate"]) == ["instruct"] and list(first["win_rate"]) == ["base", "instruct"]
    for rate in (base["win_rate"]["instruct"], *first["win_rate"].values()):
        assert rate["n"] + rate["unparsed"] == 2, "every comparison is read or counted"
    verdicts = read_jsonl(run / "iteration_1" / "judge" / "verdicts.jsonl")
    assert [row["opponent"] for row in verdicts] == ["base", "base", "instruct", "instruct"]
    assert all([order["reply"] for order in row["orders"]] for row in verdicts)
    assert read_json(run / "metrics.json")["instruct"]["mi_bound"]["n"] == 2
    assert (run / "report" / "index.html").stat().st_size > 10_000
    assert "report: file://" in done.stdout and "vs base" in done.stdout

    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 50
    assert not [path for path in files if KEY.encode() in path.read_bytes()], "the key is written down"
    assert KEY not in done.stdout + done.stderr


def test_a_writer_that_cannot_write_shows_its_reply(server: tuple[str, str], tmp_path: Path) -> None:
    url, name = server
    writer = ["principles=endpoint_writer", f"principles.model={name}", f"principles.base_url={url}"]
    done = launch(tmp_path, "name=written", *writer, "principles.max_tokens=64", "principles.attempts=2")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "in the last of 2 replies" in done.stderr and "The reply: " in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "written" / "principles.yaml").exists()


def test_refusals_in_the_words_of_the_server(server: tuple[str, str]) -> None:
    def ask(question: str, model: str, max_tokens: int = 4, **request: Any) -> Reply:
        asked = Endpoint("judge", model, server[0], "JUDGE_KEY", 60, 0, request=request)
        return asked.ask([{"role": "user", "content": question}], max_tokens)

    name = server[1]
    assert ask("word " * 9000, name).refusal == "too long"
    kept = ask("Why?", name, 4, top_k=1, chat_template_kwargs={"enable_thinking": False}, temperature=None)
    assert (kept.refusal, kept.finish_reason) == (None, "length")
    with pytest.raises(EndpointError, match=r"set judge.request=\{\}, without temperature"):
        ask("Why?", name, temperature="hot")
    with pytest.raises(EndpointError, match=r"set judge.request=\{top_k: VALUE\}"):
        ask("Why?", name, top_k=-7)
    with pytest.raises(EndpointError, match="does not exist"):
        ask("Why?", "another")
