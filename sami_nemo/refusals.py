"""What an endpoint's refusal concerns: one question among many, or every question. Each server has words of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

# Why one question has no answer. Counted under these names in summaries and on the report page.
CONTENT_FILTER = "content filter"
REFUSED = "refused by the model"
TOO_LONG = "too long"
CUT = "cut before an answer"
NOT_ACCEPTED = "not accepted"
EMPTY = "empty reply"
UNEXPLAINED = (CUT, NOT_ACCEPTED, EMPTY)
"""Of these the fault may be the endpoint's, or the configuration's."""
# Times the limit of a reply that was too short for an answer: what a reasoning model thinks before it answers.
ROOM_FOR_THOUGHTS = 8

# Of an error that would come to every question alike: a wrong key, no money, an unknown model or address.
OF_EVERY_QUESTION = {401, 402, 404, 405}
# Of an error about what the request says.
OF_THE_REQUEST = {400, 422}
TOO_LARGE = 413

FILTERED = re.compile(
    r"content[_ -]?filter|content[_ ]management[_ ]policy|content[_ ]policy|responsible_?ai|usage (polic|guideline)|"
    r"safety (system|check|filter|setting|polic)|(input|prompt|content|request|message|text)s?\b.{0,40}\bflagged|"
    r"prohibited[_ ]content|inappropriate content|content exists risk|data_?inspection_?failed|sensitive content",
    re.IGNORECASE,
)
FILTER_FINISH = re.compile(r"content_?filter|safety|refusal|sensitive|prohibited|blocklist|recitation", re.IGNORECASE)
CUT_FINISH = ("length", "max_tokens")
LONG = re.compile(
    r"context[_ ]?(length|window|size|limit)|exceed_context|maximum (model|input|prompt) length|string_above_max_length|"
    r"string too long|(prompt|input|request|message|question|conversation|text)s? (is|are|was|were) too (long|large)|"
    r"(prompt|request|input) too (long|large)|too many (input |prompt )?tokens|"
    r"reduce the length|reduce your (prompt|message)|input[_ ]?tokens? (count|length|limit)|exceeds? the (token|length) limit|"
    r"inputs?`? (tokens? \+|must have less)|range of input length|too large for model|max_tokens must be at least 1, got -",
    re.IGNORECASE,
)
# With status 400 instead of 401, 402 and 404.
WHOLE = re.compile(
    r"api[ _-]?key|authenticat|credit balance|billing|quota|(invalid|unknown|unsupported|no such) model|model_not_found|"
    r"model\b.{0,100}\b(not found|not exist|not (a )?valid|not available|unavailable|deprecated|not support)",
    re.IGNORECASE,
)
LIMIT = re.compile(r"too (large|big|high|great|small|low)|at (most|least)|less than|greater than|<=|>=", re.IGNORECASE)
# Where an error repeats the request, with the question in it.
ECHOES = ("input", "ctx", "url")


def texts_in(body: Any) -> list[str]:
    """Every text of an error's body, but for those that repeat the request."""
    if isinstance(body, str):
        return [body]
    if isinstance(body, Mapping):
        body = [below for name, below in body.items() if name not in ECHOES]
    return [text for below in body for text in texts_in(below)] if isinstance(body, list) else []


def explained(texts: Iterable[str]) -> str | None:
    """The reason that an error's words give why this one question is not answered, if they give one."""
    said = " ".join(texts)
    if FILTERED.search(said):
        return CONTENT_FILTER
    return TOO_LONG if LONG.search(said) else None


def reason_of_error(status: int, texts: list[str], parameter: str | None) -> str | None:
    """Why one question is refused; None for an error that concerns every question, or that may pass.

    Args:
        texts: of the error's body.
        parameter: of the request, that the error is about.
    """
    if status in OF_EVERY_QUESTION:
        return None
    if reason := explained(texts):
        return reason
    if status == TOO_LARGE:
        return TOO_LONG
    if status not in OF_THE_REQUEST or parameter or (status == 400 and WHOLE.search(" ".join(texts))):
        return None
    return NOT_ACCEPTED


def reason_of_reply(finish_reason: str | None, refusal: str | None) -> str:
    """Why a reply is empty."""
    finish = str(finish_reason).lower()
    if refusal:
        return REFUSED
    if FILTER_FINISH.search(finish):
        return CONTENT_FILTER
    return CUT if finish in CUT_FINISH else EMPTY


def refused_parameter(sent: Iterable[str], texts: list[str], about: str | None, question: str) -> str | None:
    """Which of the parameters sent an error is about.

    Args:
        texts: of the error's body.
        about: what the error itself names, like messages or body.temperature.
        question: its words are no names of parameters if the error repeats it.
    """
    names = list(sent)
    for part in (about or "").split("."):
        if part in names:
            return part
    found = []
    for order, text in enumerate(texts):
        for name in names:
            # Some servers write maxTokens.
            spelled = name.replace("_", "_?")
            quoted = rf"['\"`]{spelled}['\"`]|^{spelled}$"
            bare = rf"(?<![\w-]){spelled}(?![\w-])"
            pattern = quoted if re.search(bare, question, re.IGNORECASE) else f"{quoted}|{bare}"
            if match := re.search(pattern, text, re.IGNORECASE):
                found.append((order, match.start(), name))
    return min(found)[2] if found else None


def remedy_for(name: str, section: str, request: Mapping[str, Any], sent: Mapping[str, Any], texts: list[str]) -> str:
    """Which key to set when a parameter is refused.

    Args:
        section: of the configuration.
        request: what its key `request` holds now.
        sent: the parameters of the refused request.
    """
    said = " ".join(texts)
    if LIMIT.search(said):
        return f"set {section}.request={_flow({**request, name: 'VALUE'})} with a value that it takes"
    if name in request:
        rest = {key: value for key, value in request.items() if key != name}
        return f"set {section}.request={_flow(rest)}, without {name}"
    instead = {"max_completion_tokens": sent[name]} if name == "max_tokens" and "max_completion_tokens" in said else {}
    return f"set {section}.request={_flow({**request, name: None, **instead})}"


def more_tokens(section: str, request: Mapping[str, Any], sent: Mapping[str, Any]) -> str:
    """Which key to set when a reply ends before it says anything; arguments as in `remedy_for`."""
    limits = [name for name in ("max_completion_tokens", "max_tokens") if isinstance(sent.get(name), int)]
    if not limits:
        return "the model's own limit is too low for an answer"
    return f"set {section}.request={_flow({**request, limits[0]: ROOM_FOR_THOUGHTS * sent[limits[0]]})}"


def _flow(request: Mapping[str, Any]) -> str:
    """In one line, as on a command line."""
    return yaml.safe_dump(
        dict(request), default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    ).strip()
