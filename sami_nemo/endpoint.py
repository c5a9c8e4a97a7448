"""A model behind an OpenAI-compatible endpoint: one question at temperature 0, asked again after errors that pass.

Used by the principle writer and by the judge. The key comes from the environment and goes nowhere but to the endpoint:
no text that leaves this module holds it.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openai

from sami_nemo.config.types import is_loopback
from sami_nemo.errors import EndpointError

Message = dict[str, str]

# Exponential: 0.5, 1, 2, … seconds, at most a minute, each shortened by chance so that callers do not come back at once.
FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 60.0
# These pass by themselves; other statuses (a wrong key, an unknown model, a prompt that is too long) do not.
PASSING_STATUSES = {408, 409, 429}
# A 429 that waiting does not mend.
OUT_OF_MONEY = "insufficient_quota"


@dataclass(frozen=True)
class Reply:
    """What a model answered, and what it cost in tokens."""

    text: str
    input_tokens: int
    output_tokens: int


class DamagedReply(Exception):
    """An answer with a good status and without a message in it."""


class Endpoint:
    """A model at an address. Threads may share it.

    Args:
        field: the configuration section that errors name ("judge", "principles").
        base_url: null is the client's default.
        api_key_variable: environment variable with the key; an endpoint on this machine needs none.
        retries: of one question.

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
    ) -> None:
        self._key = os.environ.get(api_key_variable, "")
        if not self._key and not is_loopback(base_url):
            remedy = "the environment has no such variable; set it to the endpoint's key"
            raise EndpointError(f"{field}.api_key_variable", api_key_variable, remedy)
        self._field = field
        self._model = model
        self._retries = retries
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
        """One reply.

        Raises:
            EndpointError: the endpoint refuses, or went on failing.
        """
        for attempt in range(self._retries + 1):
            try:
                return self._ask_once(messages, max_tokens)
            except (openai.APIConnectionError, DamagedReply) as error:
                problem, wait = self._describe(error), None
            except openai.APIStatusError as error:
                if not _passes(error):
                    raise self._failure(self._describe(error)) from None
                problem, wait = self._describe(error), _retry_after(error)
            except (openai.OpenAIError, ValueError) as error:
                # A body that is not JSON, or not of the API's form.
                problem, wait = self._describe(error), None
            if attempt < self._retries:
                self._sleep(wait if wait is not None else self._delay(attempt))
        raise self._failure(f"{problem}; gave up after {self._retries + 1} requests")

    def _ask_once(self, messages: list[Message], max_tokens: int) -> Reply:
        with self._lock:
            self.requests += 1
        answer: Any = self._client.chat.completions.create(
            model=self._model,
            messages=messages,  # type: ignore[arg-type]
            temperature=0,
            max_tokens=max_tokens,
        )
        choices = getattr(answer, "choices", None)
        text = getattr(choices[0].message, "content", None) if choices else None
        if not isinstance(text, str) or not text.strip():
            raise DamagedReply("the reply holds no message")
        usage = getattr(answer, "usage", None)
        return Reply(text, getattr(usage, "prompt_tokens", 0) or 0, getattr(usage, "completion_tokens", 0) or 0)

    def _delay(self, attempt: int) -> float:
        longest = min(FIRST_DELAY_SECONDS * 2**attempt, LONGEST_DELAY_SECONDS)
        return longest * self._random.uniform(0.5, 1)

    def _failure(self, problem: str) -> EndpointError:
        where = str(self._client.base_url)
        return EndpointError(f"{self._field}.base_url", where, f"{problem}; the same command goes on from here")

    def _describe(self, error: Exception) -> str:
        """In one line, without the key: some endpoints repeat it in their messages."""
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return re.sub(re.escape(self._key), "(key)", text) if self._key else text


def _passes(error: openai.APIStatusError) -> bool:
    if error.code == OUT_OF_MONEY:
        return False
    return error.status_code in PASSING_STATUSES or error.status_code >= 500


def _retry_after(error: openai.APIStatusError) -> float | None:
    """Seconds that the endpoint asks to wait, if it does; dates are not used by these APIs."""
    try:
        seconds = float(error.response.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), LONGEST_DELAY_SECONDS)
