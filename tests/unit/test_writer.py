"""The principle writer's stage against a real server on loopback: retries with the problem named, and what it writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sami_nemo import writer
from sami_nemo.config.compose import compose
from sami_nemo.constitution.principles import load_principles
from sami_nemo.errors import DataError, EndpointError
from sami_nemo.run_dir import RunDir, partial, read_json
from tests.openai_server import Sent, Server, completion, refuse

GOOD = """1. [Concise]: Summaries should be brief.
2. [Comprehensive]: Summaries should be complete.

1. [Not concise]: Summaries should be long.
2. [Not comprehensive]: Summaries should be partial."""


def run_stage(
    answer: Callable[[list[dict[str, str]]], str | Sent], tmp_path: Path, *more: str
) -> tuple[RunDir, Server]:
    server = Server(answer=answer)
    words = ["principles.model=m", f"principles.base_url={server.url}", "principles.attempts=3"]
    config = compose(["recipe=sami_mistral", "principles=endpoint_writer", *words, *more, f"runs_dir={tmp_path}"])
    run = RunDir(config.run_dir)
    try:
        writer.main(config, run, 0)
    finally:
        server.close()
    return run, server


def test_a_reply_that_cannot_be_used_is_sent_back_with_the_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def answer(messages: list[dict[str, str]]) -> str:
        seen.append(messages)
        return "I would rather talk about the weather." if len(seen) == 1 else GOOD

    run, _ = run_stage(answer, tmp_path)
    # Appendix A.7, filled in.
    assert seen[0][0]["content"].startswith("I am writing a constitution for how to summarize Reddit posts. The")
    assert "two principles: concise, comprehensive. Return both" in seen[0][0]["content"]
    assert [message["role"] for message in seen[1]] == ["user", "assistant", "user"]
    assert "0 labelled principles" in seen[1][2]["content"]
    assert seen[1][2]["content"].endswith("\n2. Comprehensive: ...\n3. Not concise: ...\n4. Not comprehensive: ...")
    principles = load_principles(str(partial(run.principles)))
    assert principles.count == 4 and principles.writer == "m"
    assert principles.desired.id == "concise+comprehensive"
    assert principles.desired.statements == ("Summaries should be brief.", "Summaries should be complete.")
    record = read_json(partial(run.principles_writer))
    assert [reply["problem"] is None for reply in record["replies"]] == [False, True]
    assert [reply["finish_reason"] for reply in record["replies"]] == ["stop", "stop"]
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "concise, principle: Summaries should be brief.",
        "concise, antithesis: Summaries should be long.",
        "comprehensive, principle: Summaries should be complete.",
        "comprehensive, antithesis: Summaries should be partial.",
    ]


def test_after_the_last_attempt_the_reply_is_shown(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 replies.*The reply: no idea$") as error:
        run_stage(lambda messages: "no idea", tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("principles.yaml*"))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (
            refuse(400, code="content_filter", message="It was filtered."),
            r"no answer \(content filter: .*It was filtered",
        ),
        (Sent(completion(None, refusal="I cannot.")), r"no answer \(refused by the model: .*I cannot\."),
        (Sent(completion("", "length")), r"cut before an answer: .*set principles.request={max_tokens: 8192}"),
    ],
)
def test_a_refused_question_is_one_line(
    answer: Sent, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(EndpointError, match=rf"principles.model = m: .*{told}.*write a principles file") as error:
        run_stage(lambda messages: answer, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.rglob("principles*"))
    assert "content filter" not in told or "(content filter)" in capsys.readouterr().out


def test_a_writer_is_sent_the_parameters_it_wants(tmp_path: Path) -> None:
    request = "principles.request={max_completion_tokens: 4096, max_tokens: null, temperature: null}"
    _, server = run_stage(lambda messages: GOOD, tmp_path, request)
    [body] = server.bodies
    assert body.keys() == {"model", "messages", "max_completion_tokens"} and body["max_completion_tokens"] == 4096


def test_thoughts_of_a_writer_are_left_out(tmp_path: Path) -> None:
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": GOOD}]
    run, _ = run_stage(lambda messages: Sent(completion(parts)), tmp_path)
    assert load_principles(str(partial(run.principles))).count == 4
    assert read_json(partial(run.principles_writer))["replies"][0]["reply"] == GOOD


def test_a_file_is_checked_and_copied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = compose([f"runs_dir={tmp_path}"])
    run = RunDir(config.run_dir)
    writer.main(config, run, 0)
    assert load_principles(str(partial(run.principles))) == load_principles("dialogue_claude_opus")
    assert "harmless, antithesis: " in capsys.readouterr().out
