"""Addresses of endpoints: which are refused, and what a refused one was probably meant to be."""

from __future__ import annotations

import pytest

from sami_nemo.config.address import is_sound, lacks_version, likely_address, web_address

LOCAL = "http://localhost:8000/v1"
CLOUD = "https://api.mistral.ai/v1"


@pytest.mark.parametrize(
    ("value", "meant"),
    [
        # Without a scheme.
        ("localhost:8000/v1", LOCAL),
        ("localhost:8000", LOCAL),
        ("127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1"),
        ("[::1]:8000/v1", "http://[::1]:8000/v1"),
        ("node7/v1", "http://node7/v1"),
        ("judge.cluster.local:8000/v1", "http://judge.cluster.local:8000/v1"),
        ("10.0.0.7/v1", "http://10.0.0.7/v1"),
        ("api.mistral.ai/v1", CLOUD),
        ("api.mistral.ai", CLOUD),
        ("//api.mistral.ai/v1", CLOUD),
        # The whole path of a request.
        ("http://localhost:8000/v1/chat/completions", LOCAL),
        ("https://api.mistral.ai/v1/chat/completions/", CLOUD),
        ("https://api.mistral.ai/v1/completions", CLOUD),
        ("https://api.mistral.ai/v1/responses", CLOUD),
        ("localhost:8000/v1/chat/completions", LOCAL),
        ("https://host.org/openai/v1/chat/completions?api-version=1", "https://host.org/openai/v1"),
        # Spaces and quotes.
        (" http://localhost:8000/v1", LOCAL),
        ("http://localhost:8000/v1 ", LOCAL),
        ("http:// localhost:8000/v1", LOCAL),
        ("http://localhost:8000/v1\n", LOCAL),
        ('"http://localhost:8000/v1"', LOCAL),
        # Slips in the scheme, and other schemes.
        ("https//api.mistral.ai/v1", CLOUD),
        ("https:/api.mistral.ai/v1", CLOUD),
        ("https:api.mistral.ai/v1", CLOUD),
        ("https;//api.mistral.ai/v1", CLOUD),
        ("htps://api.mistral.ai/v1", CLOUD),
        ("htttps://api.mistral.ai/v1", CLOUD),
        ("http:\\\\localhost:8000\\v1", LOCAL),
        ("http:///localhost:8000/v1", LOCAL),
        ("http://http://localhost:8000/v1", LOCAL),
        ("http://https://api.mistral.ai/v1", CLOUD),
        ("ws://localhost:8000/v1", LOCAL),
        ("wss://api.mistral.ai/v1", CLOUD),
        ("ftp://localhost:8000/v1", LOCAL),
        ("grpc://localhost:8000", LOCAL),
        # What belongs into no address.
        ("https://api.mistral.ai/v1?key=1", CLOUD),
        ("https://api.mistral.ai/v1?", CLOUD),
        ("https://api.mistral.ai/v1#top", CLOUD),
        ("https://me:secret@api.mistral.ai/v1", CLOUD),
        ("http://localhost:8000//v1", LOCAL),
        # Nothing to be told.
        ("file:///etc/hosts", None),
        ("http://", None),
        ("http://localhost:99999/v1", None),
        ("http://localhost:0/v1", None),
        ("http://localhost:port/v1", None),
        ("http://{host}/v1", None),
        ("http://a,b/v1", None),
        ("/v1", None),
    ],
)
def test_what_was_probably_meant(value: str, meant: str | None) -> None:
    assert not is_sound(value)
    assert likely_address(value) == meant
    with pytest.raises(ValueError, match="no address of an endpoint; give http://HOST:PORT/v1") as caught:
        web_address(value)
    assert ("probably" in str(caught.value)) == (meant is not None) and (meant or "") in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        LOCAL,
        CLOUD,
        "https://api.mistral.ai",
        "http://localhost:8000/",
        "http://localhost:8000/v1/",
        "HTTPS://API.Mistral.ai/v1",
        "http://[::1]:8000/v1",
        "http://vllm_server:8000/v1",
        "https://resource.openai.azure.com/openai/v1/",
        "https://generativelanguage.googleapis.com/v1beta/openai/",
        "https://resource.services.ai.azure.com/models",
        "https://gateway.org/v1/account-7/my%20gateway/openai",
    ],
)
def test_sound_addresses_stay_as_they_are(value: str) -> None:
    assert web_address(value) == value


def test_a_version_may_stand_anywhere_in_the_path() -> None:
    assert lacks_version("https://host.org") and lacks_version("https://v1.host.org/openai")
    assert not lacks_version(LOCAL) and not lacks_version("https://host.org/v1beta/openai/")
