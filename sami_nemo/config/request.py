"""Parameters that a configuration adds to the requests of an endpoint, or takes out of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import PydanticCustomError

# Set by the stage, or no part of a request, with what to do instead.
NOT_HERE = {
    "messages": "the stage writes them; take it out",
    "model": "set the section's key model",
    "stream": "replies are read whole; take it out",
    "stream_options": "replies are read whole; take it out",
    "n": "one reply is read; take it out",
    "extra_body": "give its keys here, without extra_body",
    "extra_query": "no part of a request's body; take it out",
    "timeout": "no part of a request's body; take it out",
}
# Not counts of tokens, like max_tokens.
SECRET = re.compile(
    r"(.*[_-])?(api[_-]?key|auth|authori[sz]ation|bearer|secret|password|credential|header)s?|"
    r"(.*[_-])?((access|api|auth|bearer|hf|refresh|session)[_-]?)?token",
    re.IGNORECASE,
)


def request_parameters(value: dict[str, Any]) -> dict[str, Any]:
    """The parameters themselves.

    Raises:
        PydanticCustomError: one that the stage sets itself, that no request has, that may be a secret, or that is no plain
            data. The value is not told, because it may be a secret.
    """
    for name in value:
        if name in NOT_HERE:
            raise _refused(name, NOT_HERE[name])
    for name in _names(value):
        if SECRET.fullmatch(name):
            remedy = (
                "a secret is not written into a configuration; put it into the variable that api_key_variable names"
            )
            raise _refused(name, remedy)
    for name, below in value.items():
        if not _is_plain(below):
            raise _refused(
                name, "no plain data; give texts, finite numbers, true, false, null, lists or mappings of them"
            )
    return value


def _refused(name: str, remedy: str) -> PydanticCustomError:
    # Braces would be places for values.
    return PydanticCustomError("request", "{remedy}", {"shown": name, "remedy": remedy})


def _names(value: Any) -> Iterator[str]:
    """Of all mappings in it, however deep."""
    if isinstance(value, Mapping):
        yield from map(str, value)
        value = value.values()
    elif not isinstance(value, list):
        return
    for below in value:
        yield from _names(below)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        # Ids of tokens are numbers here, and names in JSON.
        return all(isinstance(name, str | int) and _is_plain(below) for name, below in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
