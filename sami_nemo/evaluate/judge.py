"""Stage `judge_n` with `judge.method=endpoint`: a model says which response follows the constitution better.

Paper, section 5 and appendix A.12. Every reply is kept in the run's judge_cache/ as soon as it is there, so that a
rerun asks nothing twice; that the endpoint refused a question is kept like a reply. Writes into iteration_<n>/judge/:

    verdicts.jsonl    one row per comparison, see comparisons.py, with the orders asked and the replies; `refused` is why
                      there is no reply, or null
    summary.json      win rates and refusals (see win_rates.py), tokens and dollars, and the request's parameters
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sami_nemo.config.schema import Config, JudgeConfig
from sami_nemo.endpoint import Endpoint, Message, Reply, parameters_of
from sami_nemo.errors import ConfigError, EndpointError
from sami_nemo.evaluate.choice import read_choice
from sami_nemo.evaluate.comparisons import Comparison, comparisons, verdict
from sami_nemo.evaluate.win_rates import win_rates
from sami_nemo.progress import report, report_phase
from sami_nemo.prompts.templates import judge_prompt
from sami_nemo.prompts.tokenization import PromptTokenizer
from sami_nemo.refusals import UNEXPLAINED
from sami_nemo.run_dir import RunDir, partial, read_json, write_json, write_jsonl

# Unexplained refusals without a single answer, after which the endpoint is taken to be at fault: asking each question of a
# broken endpoint would take hours of retries. Single questions that go wrong are far fewer.
MOST_UNEXPLAINED = 20


@dataclass(frozen=True)
class Question:
    """One comparison in one order."""

    comparison: Comparison
    model_first: bool
    """Whether the judged model's response is A."""
    messages: tuple[Message, ...]


class ReplyCache:
    """Replies on disk, one file each, under a hash of model, question and parameters.

    Args:
        parameters: of the request, if any were given; the default ones are not in the hash, as they once were for all.
    """

    def __init__(self, directory: Path, model: str, parameters: Mapping[str, Any] | None = None) -> None:
        self._directory = directory
        self._model = model
        self._parameters = dict(parameters or {})

    def path(self, messages: Sequence[Message]) -> Path:
        asked = [self._model, list(messages), *([self._parameters] if self._parameters else [])]
        content = json.dumps(asked, sort_keys=True, ensure_ascii=False)
        return self._directory / f"{hashlib.sha256(content.encode()).hexdigest()}.json"

    def get(self, messages: Sequence[Message]) -> Reply | None:
        path = self.path(messages)
        return Reply(**read_json(path)["reply"]) if path.exists() else None

    def put(self, messages: Sequence[Message], reply: Reply) -> None:
        asked = {"model": self._model, "messages": list(messages), "parameters": self._parameters}
        write_json(self.path(messages), {**asked, "reply": asdict(reply)})

    def forget(self, messages: Sequence[Message]) -> None:
        self.path(messages).unlink(missing_ok=True)

    def tokens(self) -> tuple[int, int]:
        """Input and output tokens of all replies that were ever paid for in this run."""
        replies = [read_json(path)["reply"] for path in self._directory.glob("*.json")]
        return sum(reply["input_tokens"] for reply in replies), sum(reply["output_tokens"] for reply in replies)


class Account:
    """What the replies have cost, in dollars; threads share it."""

    def __init__(self, judge: JudgeConfig, input_tokens: int, output_tokens: int) -> None:
        self._judge = judge
        self._lock = threading.Lock()
        self.input_tokens, self.output_tokens = input_tokens, output_tokens
        self.replies = 0
        """That were added, beside those it began with."""

    @property
    def dollars(self) -> float:
        judge = self._judge
        return (
            self.input_tokens * judge.dollars_per_million_input_tokens
            + self.output_tokens * judge.dollars_per_million_output_tokens
        ) / 1e6

    def add(self, reply: Reply) -> None:
        with self._lock:
            self.input_tokens += reply.input_tokens
            self.output_tokens += reply.output_tokens
            self.replies += 1

    def check(self) -> None:
        """Asked before every request; those under way when the budget is reached are still paid.

        Raises:
            EndpointError: nothing is left.
        """
        budget = self._judge.budget_dollars
        if budget is not None and self.dollars >= budget:
            remedy = (
                f"spent: {self.dollars:.2f} dollars for {self.input_tokens} input and {self.output_tokens} output "
                "tokens; the replies are kept, and the same command with a larger budget goes on from here"
            )
            raise EndpointError("judge.budget_dollars", budget, remedy)


def main(config: Config, run: RunDir, iteration: int) -> None:
    judge = config.judge
    assert judge.model is not None
    directory = partial(run.judge(iteration))
    shutil.rmtree(directory, ignore_errors=True)
    check_same_request(judge, run, iteration)
    given = parameters_of(judge.max_tokens, judge.request) if judge.request else None
    cache = ReplyCache(run.judge_cache, judge.model, given)
    account = Account(judge, *cache.tokens())
    endpoint = Endpoint(
        "judge",
        judge.model,
        judge.base_url,
        judge.api_key_variable,
        judge.timeout_seconds,
        judge.retries,
        request=judge.request,
    )
    tokenizer = PromptTokenizer.load(run.hf(0), config.data.task, config.generate.chat_template)
    report_phase("work")
    questions = [
        question
        for comparison in comparisons(config, run, iteration)
        for question in ask_in_orders(comparison, config, f"{config.seed}/{iteration}")
    ]
    replies = collect(questions, endpoint, judge, cache, account)
    rows = verdicts(questions, replies, tokenizer.count)
    report_phase("saving")
    write_jsonl(directory / "verdicts.jsonl", rows)
    write_json(
        directory / "summary.json",
        {
            "win_rate": win_rates(rows),
            "judge_tokens": {"input": account.input_tokens, "output": account.output_tokens},
            "judge_dollars": round(account.dollars, 4),
            "judge_request": judge.request,
        },
    )


def check_same_request(judge: JudgeConfig, run: RunDir, iteration: int) -> None:
    """A request may be mended when a run goes on, but verdicts of one run are asked for alike.

    Raises:
        ConfigError: an earlier iteration was judged with other parameters.
    """
    for earlier in range(iteration):
        path = run.judge(earlier) / "summary.json"
        before = read_json(path).get("judge_request", {}) if path.exists() else judge.request
        if before != judge.request:
            remedy = f"iteration {earlier} was judged with {before}; give the same, or remove {path.parent} to judge it again"
            raise ConfigError("judge.request", judge.request, remedy)


def ask_in_orders(comparison: Comparison, config: Config, seed: str) -> list[Question]:
    """The question in one order, drawn by the seed, or in both."""
    first = random.Random(f"{seed}/{comparison.opponent}/{comparison.query_id}").random() < 0.5
    orders = [first, not first] if config.judge.both_orders else [first]
    questions = []
    for model_first in orders:
        pair = (comparison.response, comparison.opponent_response)
        a, b = pair if model_first else pair[::-1]
        text = judge_prompt(config.data.task, comparison.constitution, comparison.query, a, b)
        questions.append(Question(comparison, model_first, ({"role": "user", "content": text},)))
    return questions


def collect(
    questions: Sequence[Question], endpoint: Endpoint, judge: JudgeConfig, cache: ReplyCache, account: Account
) -> list[Reply]:
    """A reply to every question, or its refusal: from the cache, else from the endpoint.

    Raises:
        EndpointError: the endpoint failed, answers no question, or the budget is spent; replies that have come are in the
            cache.
    """
    kept = [cache.get(question.messages) for question in questions]
    # Equal questions (two models that answered alike) are asked once.
    missing = {cache.path(q.messages): q for q, reply in zip(questions, kept, strict=True) if reply is None}
    finished = len(questions) - len(missing)

    def ask(question: Question) -> Reply:
        account.check()
        reply = endpoint.ask(list(question.messages), judge.max_tokens)
        cache.put(question.messages, reply)
        account.add(reply)
        report(finished + account.replies, len(questions), "verdicts", dollars=round(account.dollars, 4))
        return reply

    answered = any(reply is not None and not reply.refusal for reply in kept)
    unexplained = 0
    with ThreadPoolExecutor(judge.concurrency) as pool:
        futures = [pool.submit(ask, question) for question in missing.values()]
        try:
            for future in as_completed(futures):
                refusal = future.result().refusal
                answered = answered or not refusal
                unexplained += refusal in UNEXPLAINED
                if unexplained >= MOST_UNEXPLAINED and not answered:
                    break
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if questions and not answered:
        raise _nothing_answered(questions, endpoint, cache)
    return [reply or _kept(cache, question) for question, reply in zip(questions, kept, strict=True)]


def _nothing_answered(questions: Sequence[Question], endpoint: Endpoint, cache: ReplyCache) -> EndpointError:
    """Of an endpoint that refuses everything: then its refusals say nothing of the questions, and are not kept."""
    refused = []
    for question in questions:
        if (reply := cache.get(question.messages)) and reply.refusal:
            refused.append(reply)
            cache.forget(question.messages)
    counts = ", ".join(f"{reason} {count}" for reason, count in Counter(r.refusal for r in refused).most_common())
    return endpoint.failure(f"no question was answered ({counts}); the first: {refused[0].detail}")


def _kept(cache: ReplyCache, question: Question) -> Reply:
    reply = cache.get(question.messages)
    assert reply is not None
    return reply


def choice_of(reply: Reply) -> str | None:
    """What a reply chooses: "A" or "B", or None if it is refused, cut or cannot be read."""
    return None if reply.refusal else read_choice(reply.text, reply.finish_reason)


def verdicts(
    questions: Sequence[Question], replies: Sequence[Reply], count_tokens: Callable[[str], int]
) -> list[dict[str, Any]]:
    """A row per comparison; its score is the mean over the orders asked, null if one is refused or cannot be read."""
    asked: dict[tuple[str, str], list[tuple[Question, Reply]]] = {}
    for question, reply in zip(questions, replies, strict=True):
        asked.setdefault((question.comparison.opponent, question.comparison.query_id), []).append((question, reply))
    rows = []
    for orders in asked.values():
        choices = [choice_of(reply) for _, reply in orders]
        wins = [
            (choice == "A") == question.model_first
            for (question, _), choice in zip(orders, choices, strict=True)
            if choice is not None
        ]
        score = sum(wins) / len(wins) if len(wins) == len(orders) else None
        refused = next((reply.refusal for _, reply in orders if reply.refusal), None)
        details = [order_details(question, reply) for question, reply in orders]
        rows.append(verdict(orders[0][0].comparison, score, count_tokens, refused=refused, orders=details))
    return rows


def order_details(question: Question, reply: Reply) -> dict[str, Any]:
    """One order of a row in verdicts.jsonl."""
    details = {"model_first": question.model_first, "reply": reply.text, "finish_reason": reply.finish_reason}
    return details | ({"refused": reply.refusal, "detail": reply.detail} if reply.refusal else {})


if __name__ == "__main__":
    from sami_nemo import stage_entry

    stage_entry.run(main, "generate")
