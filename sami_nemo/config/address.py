"""Addresses of OpenAI-compatible endpoints: which a client can ask, and what a mistyped one was probably meant to be."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

# A name or number; also an IPv6 address, which urlsplit takes out of its brackets.
HOST = re.compile(r"\w[\w.-]*|[0-9a-f:.]+(%\w+)?")
# What the client itself puts behind the address.
ROUTE = re.compile(r"/+(chat/completions|completions|responses|embeddings)/*$", re.IGNORECASE)
# http and https with a slip of the keyboard, their relatives, and any other word that stands like a scheme. A colon before
# a digit is that of a port.
SCHEME = re.compile(r"(?:h+[tp]+|ws|ftp)(?P<secure>s?)(?:[:;.,]?/+|[:;](?!\d))|[a-z][a-z0-9+-]*://", re.IGNORECASE)


def web_address(value: str) -> str:
    """The address itself: what an HTTP client can ask. It would not say before the first question, after hours of training.

    Raises:
        ValueError: it is none; with what was probably meant.
    """
    if is_sound(value):
        return value
    likely = likely_address(value)
    meant = f" (probably {likely})" if likely else ""
    raise ValueError(
        f"no address of an endpoint; give http://HOST:PORT/v1 or https://HOST/v1{meant}. The client adds the rest, and the "
        "key comes from the environment"
    )


def is_sound(value: str) -> bool:
    """Whether it has scheme and host, and nothing besides a port and a path that the client can add to."""
    try:
        parts = urlsplit(value)
        # Reading the port checks it.
        placed = bool(HOST.fullmatch(parts.hostname or "")) and parts.port != 0
    except ValueError:
        return False
    clean = not re.search(r"[\s?#@]", value) and "//" not in parts.path and not ROUTE.search(parts.path)
    return parts.scheme in ("http", "https") and placed and clean


def likely_address(value: str) -> str | None:
    """What was probably meant; None if nothing can be told."""
    text = re.sub(r"[\s\"'`<>]", "", value).replace("\\", "/")
    text, scheme = re.split(r"[?#]", text)[0], ""
    while match := SCHEME.match(text):
        scheme, text = "https" if match["secure"] else "http", text[match.end() :]
    host, _, path = (text if scheme else text.removeprefix("//")).partition("/")
    host = host.rpartition("@")[2]
    if not scheme:
        # Names on the internet have a dot, and are asked without a port.
        scheme = "https" if re.fullmatch(r"[\w-]+(\.[\w-]+)*\.[a-z]+", host, re.IGNORECASE) else "http"
    path = re.sub("/+", "/", ROUTE.sub("", f"/{path}")).rstrip("/")
    likely = f"{scheme}://{host}{path or '/v1'}"
    return likely if is_sound(likely) else None


def lacks_version(value: str) -> bool:
    """Whether no part of the path is a version like /v1, which most endpoints want."""
    return not re.search(r"/v\d", urlsplit(value).path)


def is_loopback(base_url: str | None) -> bool:
    """Whether the address is this machine's: such an endpoint needs no key."""
    return base_url is not None and urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")
