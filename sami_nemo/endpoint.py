"""A model behind an OpenAI-compatible endpoint: one question at temperature 0, asked again after errors that pass.

Used by the principle writer and by the judge. An endpoint that refuses one question (refusals.py) has replied to it; what
concerns every question is an error. The key comes from the environment and goes nowhere but to the endpoint: no text that
leaves this module holds it.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import openai

from sami_nemo import refusals
from sami_nemo.config.address import is_loopback, lacks_version
from sami_nemo.errors import EndpointError

Message = dict[str, str]

# Exponential: 0.5, 1, 2, … seconds, at most a minute, each shortened by chance so that callers do not come back at once.
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 60.0
# These pass by themselves; other statuses below 500 do not.
PASSING_STATUSES = {408, 409, 429}
# A 429 that waiting does not mend. Not "quota" alone: some endpoints call so what they give per minute.
OUT_OF_MONEY = re.compile(
    r"insufficient[_ ](quota|balance|funds|credit)|exceeded_current_quota|billing_hard_limit|all available credits|"
    r"spending limit",
    re.IGNORECASE,
)
# Of a wrong address.
NOT_THERE = {404, 405}
# Of what an endpoint says, in an error's one line.
SHOWN_CHARACTERS = 300
# Parts of a message that are no thoughts. Mistral's and other reasoning models answer in parts.
TEXT_PARTS = ("text", "output_text")


@dataclass(frozen=True)
class Reply:
    """What a model answered, and what it cost in tokens."""

    text: str
    """Blank if the question was refused."""
    input_tokens: int
    output_tokens: int
    finish_reason: str | None = None
    """As the endpoint says it: `length` if the reply is cut. Null in replies that older versions kept."""
    refusal: str | None = None
    """Why this one question has no answer, see refusals.py; null if it has one."""
    detail: str = ""
    """What the endpoint said to a refusal."""


class DamagedReply(Exception):
    """An answer with a good status that is none of this API."""


def parameters_of(max_tokens: int, request: Mapping[str, Any]) -> dict[str, Any]:
    """What a request says besides model and messages.

    Args:
        request: further parameters, or null for one to leave out.
    """
    parameters = {"temperature": 0, "max_tokens": max_tokens, **request}
    return {name: value for name, value in parameters.items() if value is not None}


class Endpoint:
    """A model at an address. Threads may share it.

    Args:
        field: the configuration section that errors name ("judge", "principles").
        base_url: null is the client's default.
        api_key_variable: environment variable with the key; an endpoint on this machine needs none.
        retries: of one question.
        request: parameters that requests have besides, or null for one to leave out.

    Raises:
        EndpointError: there is no key in the environment.
    """

    def __init__(
        self,
        field: str,
        model: str,
        base_url: str | None,
        api_key_variable: str,
        timeout_seconds: float,
        retries: int,
        sleep: Callable[[float], Any] = time.sleep,
        request: Mapping[str, Any] | None = None,
    ) -> None:
        self._key = os.environ.get(api_key_variable, "")
        if not self._key and not is_loopback(base_url):
            remedy = "the environment has no such variable; set it to the endpoint's key"
            raise EndpointError(f"{field}.api_key_variable", api_key_variable, remedy)
        self._field = field
        self._model = model
        self._retries = retries
        self._request = dict(request or {})
        self._sleep = sleep
        self._random = random.Random()
        self._lock = threading.Lock()
        # The client's own retries would multiply with these, and know nothing of damaged replies.
        self._client = openai.OpenAI(
            api_key=self._key or "none", base_url=base_url, timeout=timeout_seconds, max_retries=0
        )
        self.requests = 0
        """Sent so far, retries included."""

    def ask(self, messages: list[Message], max_tokens: int) -> Reply:
        """One reply, or the refusal of this one question.

        Raises:
            EndpointError: the endpoint refuses every question, or went on failing.
        """
        parameters, reply = parameters_of(max_tokens, self._request), None
        for attempt in range(self._retries + 1):
            problem, wait = None, None
            try:
                reply = self._ask_once(messages, parameters)
                if reply.refusal != refusals.EMPTY:
                    return reply
            except openai.APIStatusError as error:
                if refused := self._refused(error, messages, parameters):
                    return refused
                if not _passes(error):
                    raise self.failure(self._describe(error) + self._remedy(error, messages, parameters)) from None
                problem, wait = self._describe(error), _retry_after(error)
            except (openai.OpenAIError, DamagedReply, ValueError) as error:
                # No connection, or a body that is not JSON or not of the API's form.
                problem = self._describe(error)
            if attempt < self._retries:
                self._sleep(wait if wait is not None else self._delay(attempt))
        if problem is None:
            assert reply is not None
            return reply
        raise self.failure(f"{problem}; gave up after {self._retries + 1} requests")

    def _ask_once(self, messages: list[Message], parameters: dict[str, Any]) -> Reply:
        with self._lock:
            self.requests += 1
        # The client knows some of the parameters by name; as a part of the body it sends any.
        answer: Any = self._client.chat.completions.create(
            model=self._model,
            messages=messages,  # type: ignore[arg-type]
            extra_body=parameters,
        )
        choices = getattr(answer, "choices", None)
        if not isinstance(choices, list):
            return self._without_choices(answer)
        choice = choices[0] if choices else None
        message, usage = getattr(choice, "message", None), getattr(answer, "usage", None)
        text, finish = text_of(getattr(message, "content", None)), getattr(choice, "finish_reason", None)
        reply = Reply(
            text, getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0, finish
        )
        if text.strip():
            return reply
        said = getattr(message, "refusal", None)
        reason = refusals.reason_of_reply(finish, said)
        detail = f"the reply holds no message (finish_reason {finish}){f': {said}' if said else ''}"
        if reason == refusals.CUT:
            detail += f"; {refusals.more_tokens(self._field, self._request, parameters)}"
        return replace(reply, text="", refusal=reason, detail=self._shown(detail))

    def _without_choices(self, answer: Any) -> Reply:
        """Some gateways pass an error on with a good status."""
        error = getattr(answer, "error", None)
        texts = refusals.texts_in(error)
        if reason := refusals.explained(texts):
            return Reply("", 0, 0, refusal=reason, detail=self._shown(" ".join(texts)))
        remedy = f"; try {self._address}/v1" if lacks_version(self._address) else ""
        raise DamagedReply(f"the reply holds no message{f': {error}' if error else ''}{remedy}")

    def _refused(
        self, error: openai.APIStatusError, messages: list[Message], parameters: dict[str, Any]
    ) -> Reply | None:
        texts, parameter = self._read(error, messages, parameters)
        reason = refusals.reason_of_error(error.status_code, texts, parameter)
        return Reply("", 0, 0, refusal=reason, detail=self._describe(error)) if reason else None

    def _remedy(self, error: openai.APIStatusError, messages: list[Message], parameters: dict[str, Any]) -> str:
        if error.status_code in NOT_THERE and lacks_version(self._address):
            return f"; try {self._field}.base_url={self._address}/v1"
        texts, parameter = self._read(error, messages, parameters)
        if error.status_code not in refusals.OF_THE_REQUEST or parameter is None:
            return ""
        return f"; {refusals.remedy_for(parameter, self._field, self._request, parameters, texts)}"

    @staticmethod
    def _read(
        error: openai.APIStatusError, messages: list[Message], parameters: dict[str, Any]
    ) -> tuple[list[str], str | None]:
        """The texts of an error, and the parameter that it is about."""
        question = " ".join(message["content"] for message in messages)
        texts = [text.replace(question, "") for text in refusals.texts_in(error.body) or [error.message]]
        about = error.param if isinstance(error.param, str) else None
        return texts, refusals.refused_parameter(parameters, texts, about, question)

    def _delay(self, attempt: int) -> float:
        longest = min(FIRST_DELAY_SECONDS * 2**attempt, LONGEST_DELAY_SECONDS)
        return longest * self._random.uniform(0.5, 1)

    @property
    def _address(self) -> str:
        return str(self._client.base_url).rstrip("/")

    def failure(self, problem: str) -> EndpointError:
        """An error of the endpoint as a whole."""
        where = str(self._client.base_url)
        return EndpointError(f"{self._field}.base_url", where, f"{problem}; the same command goes on from here")

    def _describe(self, error: Exception) -> str:
        return self._shown(f"{type(error).__name__}: {error}")

    def _shown(self, text: str) -> str:
        """In one line, without the key: some endpoints repeat it in their messages."""
        line = " ".join(text.split())
        return (line.replace(self._key, "(key)") if self._key else line)[:SHOWN_CHARACTERS]


def text_of(content: Any) -> str:
    """A message's content without its thoughts; blank if there is none."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") in TEXT_PARTS]
    return "".join(text for text in texts if isinstance(text, str))


def _passes(error: openai.APIStatusError) -> bool:
    if OUT_OF_MONEY.search(f"{error.code} {error.type} {error.message}"):
        return False
    return error.status_code in PASSING_STATUSES or error.status_code >= 500


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds that the endpoint asks to wait, if it does; dates are not used by these APIs."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_DELAY_SECONDS)
