"""The judge's questions, replies and verdicts where an endpoint refuses some of them, or all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.endpoint import Endpoint, Reply, parameters_of
from sami_nemo.errors import ConfigError, EndpointError
from sami_nemo.evaluate.comparisons import Comparison
from sami_nemo.evaluate.judge import (
    MOST_UNEXPLAINED,
    Account,
    Question,
    ReplyCache,
    ask_in_orders,
    check_same_request,
    choice_of,
    collect,
    verdicts,
)
from sami_nemo.evaluate.win_rates import win_rates
from sami_nemo.run_dir import RunDir, read_json, write_json
from tests.openai_server import Sent, Server, choose_a, completion, refuse

FILTER = refuse(400, code="content_filter", message="The response was filtered.")
Answer = Callable[[list[dict[str, str]]], str | Sent]
Start = Callable[[Answer], Server]


@pytest.fixture
def start() -> Iterator[Start]:
    running: list[Server] = []

    def serve(answer: Answer) -> Server:
        running.append(Server(answer=answer))
        return running[-1]

    yield serve
    for server in running:
        server.close()


def questions_of(count: int, *words: str) -> list[Question]:
    config = compose(["judge=endpoint", "judge.model=m", *words])
    return [question for n in range(count) for question in ask_in_orders(comparison(n), config, "0")]


def comparison(number: int) -> Comparison:
    return Comparison(f"q{number}", "s", f"Number {number}.", "1. Be kind.", "base", f"mine {number}", f"base {number}")


def judge(server: Server, directory: Path, questions: list[Question], *words: str) -> list[Reply]:
    config = compose(["judge=endpoint", "judge.model=m", "judge.retries=1", *words]).judge
    given = parameters_of(config.max_tokens, config.request) if config.request else None
    cache = ReplyCache(directory, "m", given)
    endpoint = Endpoint("judge", "m", server.url, "JUDGE_KEY", 20, 1, lambda seconds: None, config.request)
    return collect(questions, endpoint, config, cache, Account(config, *cache.tokens()))


def number_of(messages: list[dict[str, str]]) -> int:
    return int(messages[-1]["content"].split("Number ")[1].split(".")[0])


def some_refused(messages: list[dict[str, str]]) -> str | Sent:
    """Six of ten in six ways."""
    refused = {
        0: FILTER,
        1: Sent(completion("", "content_filter")),
        2: Sent(completion(None, refusal="I cannot help with that.")),
        3: refuse(400, code="context_length_exceeded", message="too long"),
        4: refuse(422, message="no idea"),
        5: Sent(completion("")),
    }
    return refused.get(number_of(messages), choose_a("?"))


def test_refused_questions_are_counted_and_the_others_judged(start: Start, tmp_path: Path) -> None:
    server, questions = start(some_refused), questions_of(10)
    replies = judge(server, tmp_path, questions)
    reasons = ["content filter", "content filter", "refused by the model", "too long", "not accepted", "empty reply"]
    assert [reply.refusal for reply in replies] == [*reasons, None, None, None, None]
    rows = verdicts(questions, replies, len)
    assert [row["score"] is None for row in rows] == [True] * 6 + [False] * 4
    assert [row["refused"] for row in rows] == [*reasons, None, None, None, None]
    assert rows[2]["orders"][0]["detail"].endswith("I cannot help with that.")
    rate = win_rates(rows)["base"]
    assert (rate["n"], rate["unparsed"]) == (4, 0)
    assert rate["refused"] == {reason: reasons.count(reason) for reason in reasons}

    asked = len(server.bodies)
    assert judge(server, tmp_path, questions) == replies
    assert len(server.bodies) == asked, "a rerun asks nothing twice"


def test_one_refused_order_leaves_the_comparison_out(start: Start, tmp_path: Path) -> None:
    questions = questions_of(2, "judge.both_orders=true")
    first = questions[0].messages[0]["content"]
    replies = judge(
        start(lambda messages: FILTER if messages[-1]["content"] == first else choose_a("?")), tmp_path, questions
    )
    [refused, judged] = verdicts(questions, replies, len)
    assert (refused["score"], refused["refused"]) == (None, "content filter")
    assert (judged["score"], judged["refused"]) == (0.5, None)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (FILTER, r"no question was answered \(content filter 3\); the first: .*filtered"),
        (Sent(completion("")), r"no question was answered \(empty reply 3\); the first: the reply holds no message"),
        (
            Sent(completion("", "length")),
            r"\(cut before an answer 3\); .*finish_reason length.*set judge.request={max_tokens: 4096}",
        ),
    ],
)
def test_an_endpoint_that_answers_nothing_is_at_fault(answer: Sent, told: str, start: Start, tmp_path: Path) -> None:
    questions = questions_of(3)
    with pytest.raises(EndpointError, match=told) as caught:
        judge(start(lambda messages: answer), tmp_path, questions)
    assert "\n" not in str(caught.value)
    replies = judge(start(lambda messages: choose_a("?")), tmp_path, questions)
    assert not any(reply.refusal for reply in replies), "mended, it is asked again"


def test_a_broken_endpoint_is_not_asked_everything(start: Start, tmp_path: Path) -> None:
    server = start(lambda messages: refuse(400, message="The sky is falling."))
    with pytest.raises(EndpointError, match=r"no question was answered \(not accepted \d+\); .*The sky is falling"):
        judge(server, tmp_path, questions_of(MOST_UNEXPLAINED + 30), "judge.concurrency=2")
    assert MOST_UNEXPLAINED <= len(server.bodies) <= MOST_UNEXPLAINED + 4


def test_one_answer_is_enough_to_go_on(start: Start, tmp_path: Path) -> None:
    """Asked first: the endpoint works, so what it refuses is refused for the questions' sake."""
    server = start(lambda messages: refuse(400, message="no") if number_of(messages) else choose_a("?"))
    replies = judge(server, tmp_path, questions_of(MOST_UNEXPLAINED + 10), "judge.concurrency=1")
    assert [reply.refusal for reply in replies] == [None] + ["not accepted"] * (MOST_UNEXPLAINED + 9)


def test_a_wrong_key_is_asked_with_once(start: Start, tmp_path: Path) -> None:
    server = start(lambda messages: refuse(401, message="Incorrect API key provided"))
    with pytest.raises(EndpointError, match="Incorrect API key"):
        judge(server, tmp_path, questions_of(20), "judge.concurrency=1")
    assert len(server.bodies) <= 2 and not list(tmp_path.iterdir())


def test_replies_of_an_older_version_are_found(start: Start, tmp_path: Path) -> None:
    [question] = questions_of(1)
    messages = list(question.messages)
    name = hashlib.sha256(json.dumps(["m", messages], sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    old = {"text": "Final Response: A", "input_tokens": 7, "output_tokens": 3}
    write_json(tmp_path / f"{name}.json", {"model": "m", "messages": messages, "reply": old})
    server = start(lambda messages: choose_a("?"))
    assert judge(server, tmp_path, [question]) == [Reply(**old)]
    assert (Reply(**old).finish_reason, Reply(**old).refusal) == (None, None)
    assert server.bodies == []


def test_replies_to_other_parameters_are_others(start: Start, tmp_path: Path) -> None:
    server, questions = start(lambda messages: choose_a("?")), questions_of(1)
    words: list[tuple[str, ...]] = [
        (),
        ("judge.request={reasoning_effort: low}",),
        ("judge.request={reasoning_effort: high}",),
        ("judge.request={reasoning_effort: high}", "judge.max_tokens=9"),
    ]
    for given in words * 2:
        judge(server, tmp_path, questions, *given)
    assert [(body.get("reasoning_effort"), body["max_tokens"]) for body in server.bodies] == [
        (None, 512),
        ("low", 512),
        ("high", 512),
        ("high", 9),
    ]


def test_the_finish_reason_is_kept(start: Start, tmp_path: Path) -> None:
    [reply] = judge(start(lambda messages: Sent(completion("Comparison:", "length"))), tmp_path, questions_of(1))
    assert reply == Reply("Comparison:", 100, 10, "length")
    [file] = tmp_path.glob("*.json")
    assert read_json(file)["reply"] == asdict(reply)


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        (Reply("Final Response: A", 1, 1, "stop"), "A"),
        (Reply("Final Response: A", 1, 1), "A"),
        (Reply("Perhaps Final Response: A? But", 1, 1, "length"), None),
        (Reply("Final Response: A", 1, 1, "content_filter"), None),
        (Reply("", 1, 1, refusal="empty reply"), None),
        (Reply("Neither", 1, 1, "stop"), None),
    ],
)
def test_a_cut_or_refused_reply_has_no_choice(reply: Reply, choice: str | None) -> None:
    assert choice_of(reply) == choice


def test_verdicts_of_one_run_are_asked_for_alike(tmp_path: Path) -> None:
    def check(*words: str, iteration: int = 2) -> None:
        check_same_request(compose(["judge=endpoint", "judge.model=m", *words]).judge, run, iteration)

    run = RunDir(tmp_path)
    low = "judge.request={reasoning_effort: low}"
    check(low)
    # Of an older version, which knew no other request.
    write_json(run.judge(0) / "summary.json", {"win_rate": {}})
    check()
    with pytest.raises(
        ConfigError, match=r"judge.request = .*iteration 0 was judged with {}; give the same, or remove"
    ):
        check(low)
    write_json(run.judge(0) / "summary.json", {"win_rate": {}, "judge_request": {"reasoning_effort": "low"}})
    check(low)
    with pytest.raises(ConfigError, match="iteration 0 was judged with"):
        check()
    check(iteration=0)
