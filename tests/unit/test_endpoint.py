"""The endpoint's client and the judge against a real server on loopback that fails in every way servers do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.endpoint import Endpoint
from sami_nemo.errors import EndpointError
from sami_nemo.evaluate.comparisons import Comparison
from sami_nemo.evaluate.judge import Account, ReplyCache, ask_in_orders, collect, verdicts
from tests.openai_server import FAULTS, HANG_SECONDS, KEY, Server

# A good answer takes milliseconds; on a busy machine it must not be taken for one that never comes.
TIMEOUT = HANG_SECONDS - 0.5


@pytest.fixture
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    running = Server(**getattr(request, "param", {}))
    yield running
    running.close()


def endpoint(server: Server, retries: int = 8, sleep: Any = lambda seconds: None) -> Endpoint:
    return Endpoint("judge", "m", server.url, "JUDGE_KEY", timeout_seconds=TIMEOUT, retries=retries, sleep=sleep)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "empty"])
def test_a_fault_that_stays_is_told_in_one_line_without_the_key(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    running, waits = Server(1.0, (fault,)), []
    try:
        with pytest.raises(EndpointError, match="gave up after 3 requests") as caught:
            endpoint(running, retries=2, sleep=waits.append).ask([{"role": "user", "content": "?"}], 5)
    finally:
        running.close()
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert running.faults == {fault: 3} and running.keys == {KEY}
    if fault in ("429", "500"):
        assert waits == [0.01, 0.01], "as the endpoint asks"
    else:
        # 0.5 and 1 second, each shortened by at most half.
        assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1


def test_an_empty_reply_is_asked_for_again_before_it_counts() -> None:
    running, waits = Server(1.0, ("empty",)), []
    try:
        reply = endpoint(running, retries=2, sleep=waits.append).ask([{"role": "user", "content": "?"}], 5)
    finally:
        running.close()
    assert (reply.text, reply.refusal, len(waits)) == ("", "empty reply", 2)
    assert running.faults == {"empty": 3}


def test_a_missing_key_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(EndpointError, match=r"judge.api_key_variable = JUDGE_KEY"):
        Endpoint("judge", "m", "https://example.org/v1", "JUDGE_KEY", 1, 0)


def settings(server: Server, **changes: Any) -> Config:
    words = {
        "model": "m",
        "base_url": server.url,
        "api_key_variable": "JUDGE_KEY",
        "timeout_seconds": TIMEOUT,
    } | changes
    return compose(["judge=endpoint", *(f"judge.{key}={value}" for key, value in words.items())])


def comparison(number: int) -> Comparison:
    return Comparison(
        f"q{number}", "s", f"Question {number}?", "1. Be kind.", "base", f"mine {number}", f"base {number}"
    )


@pytest.mark.parametrize("server", [{"fault_rate": 0.3}], indirect=True)
def test_two_hundred_questions_through_faults(server: Server, tmp_path: Path) -> None:
    config = settings(server, both_orders="true")
    questions = [question for n in range(100) for question in ask_in_orders(comparison(n), config, "0")]
    assert len({question.messages[0]["content"] for question in questions}) == 200
    cache, account = ReplyCache(tmp_path, "m"), Account(config.judge, 0, 0)
    replies = collect(questions, endpoint(server), config.judge, cache, account)
    assert all(
        question.messages[0]["content"][:9] in reply.text for question, reply in zip(questions, replies, strict=True)
    )
    assert len(server.good) == 200 and set(server.good.values()) == {1}, "none lost, none asked twice"
    assert set(server.faults) == {"none", *FAULTS}
    assert (account.input_tokens, account.output_tokens) == (20_000, 2_000)
    rows = verdicts(questions, replies, len)
    # A wins in both orders, so each comparison is a draw.
    assert [row["score"] for row in rows] == [0.5] * 100
    collect(questions, endpoint(server), config.judge, cache, account)
    assert sum(server.good.values()) == 200, "a rerun asks nothing"


ASK = """
import sys
from pathlib import Path
from sami_nemo.endpoint import Endpoint
from sami_nemo.evaluate.judge import Account, ReplyCache, collect
from tests.unit.test_endpoint import TIMEOUT, ask_in_orders, comparison, compose
url, cache = sys.argv[1:]
words = ["model=m", f"base_url={url}", "api_key_variable=JUDGE_KEY", f"timeout_seconds={TIMEOUT}", "concurrency=4"]
config = compose(["judge=endpoint", *(f"judge.{word}" for word in words)])
questions = [question for n in range(200) for question in ask_in_orders(comparison(n), config, "0")]
endpoint = Endpoint("judge", "m", url, "JUDGE_KEY", TIMEOUT, 20)
collect(questions, endpoint, config.judge, ReplyCache(Path(cache), "m"), Account(config.judge, 0, 0))
print("all there")
"""


@pytest.mark.parametrize("server", [{"fault_rate": 0.3}], indirect=True)
def test_a_killed_judge_goes_on_where_it_was(server: Server, tmp_path: Path) -> None:
    """kill -9 in the middle: what was kept is not asked again. Only replies under way at the kill can be lost."""
    command = [sys.executable, "-c", ASK, server.url, str(tmp_path)]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "JUDGE_KEY": KEY}
    first = subprocess.Popen(command, cwd=root, env=environment)
    while len(list(tmp_path.glob("*.json"))) < 50:
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = len(list(tmp_path.glob("*.json")))
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "all there\n", done.stderr
    assert len(server.good) == 200 and len(list(tmp_path.glob("*.json"))) == 200
    again = sum(server.good.values()) - 200
    assert kept < 200 and again <= 4, "at most the four under way"
    assert KEY not in "".join(path.read_text() for path in tmp_path.iterdir())


def test_a_spent_budget_stops_and_keeps_what_was_paid(server: Server, tmp_path: Path) -> None:
    # 100 input tokens at 1 dollar per 100 and 10 output tokens: 1.1 dollars a reply.
    prices = {"dollars_per_million_input_tokens": 10_000, "dollars_per_million_output_tokens": 10_000}
    config = settings(server, concurrency=1, budget_dollars=5, **prices)
    questions = [question for n in range(9) for question in ask_in_orders(comparison(n), config, "0")]
    cache = ReplyCache(tmp_path, "m")
    with pytest.raises(EndpointError, match=r"judge.budget_dollars = 5.0: spent: 5.50 dollars"):
        collect(questions, endpoint(server), config.judge, cache, Account(config.judge, 0, 0))
    assert len(server.good) == 5 and cache.tokens() == (500, 50)
    with pytest.raises(EndpointError, match="spent"):
        collect(questions, endpoint(server), config.judge, cache, Account(config.judge, *cache.tokens()))
    assert len(server.good) == 5
    more = settings(server, budget_dollars=50, **prices)
    assert len(collect(questions, endpoint(server), more.judge, cache, Account(more.judge, *cache.tokens()))) == 9
    assert set(server.good.values()) == {1}


def test_orders_are_drawn_by_the_seed_and_balanced(server: Server) -> None:
    config = settings(server)
    first = [ask_in_orders(comparison(n), config, "0")[0].model_first for n in range(400)]
    assert first == [ask_in_orders(comparison(n), config, "0")[0].model_first for n in range(400)]
    assert 160 < sum(first) < 240
    assert first != [ask_in_orders(comparison(n), config, "1")[0].model_first for n in range(400)]
