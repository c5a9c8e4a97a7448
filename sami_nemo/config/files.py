"""A configuration as plain values and as a file, and which of its settings results depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sami_nemo.config.schema import Config
from sami_nemo.config.spelling import as_argument, as_text
from sami_nemo.errors import ConfigError, together

OPERATIONAL = frozenset(
    {
        "cluster",
        "hardware.efficiency",
        "hardware.host_memory_gib",
        "hardware.link_gb_s",
        "hardware.memory_gb_s",
        "hardware.network_gb_s",
        "hardware.peak_tflops",
        "judge.api_key_variable",
        "judge.base_url",
        "judge.budget_dollars",
        "judge.concurrency",
        "judge.request",
        "judge.retries",
        "judge.timeout_seconds",
        "principles.api_key_variable",
        "principles.base_url",
        "principles.request",
        "principles.review",
    }
)
"""Keys, or whole sections, that change how a run is carried out and not what comes out; they may differ when it goes
on. Where an endpoint is and what it wants in a request is found when it is first asked, after hours of training, so that it
may differ, too: the judge's stage sees to it that one run is judged with one request."""

MOVED = {"sami_nemo/queries/sample_queries.jsonl": "sami_nemo/data/sample_queries.jsonl"}
"""Shipped files, with their former places: a run that began with one goes on with the other."""


def settings_of_results(values: dict[str, Any]) -> dict[str, Any]:
    """What results depend on, by dotted key: everything but `OPERATIONAL`."""
    flat = {key: MOVED.get(value, value) if isinstance(value, str) else value for key, value in flatten(values).items()}
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{o}.") for o in OPERATIONAL)}


def parse_config(values: dict[str, Any]) -> Config:
    """Check types and keys of plain values.

    Raises:
        ConfigError: a problem, with field, value and remedy; of several all are told.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise together([_problem(found, values) for found in error.errors()]) from None


def _problem(found: Any, values: dict[str, Any]) -> ConfigError:
    """What pydantic found, in our words."""
    place, given = found["loc"], found["input"]
    field = ".".join(str(part) for part in place)
    if found["type"] == "extra_forbidden":
        return ConfigError(field, given, "unknown key; remove it or correct its spelling")
    if found["type"] == "missing":
        return ConfigError(field, "(missing)", "give it a value")
    remedy = found["msg"].removeprefix("Value error, ")
    if place[-1] == "[key]":
        # YAML takes NO for a truth.
        remedy = remedy if isinstance(given, str) else "the name of a variable is a text; quote it"
        return ConfigError(".".join(map(str, place[:-2])), repr(given), remedy)
    if found["type"] == "string_type" and isinstance(given, bool | int | float | None):
        return _unquoted(place, given, values)
    if found["type"] == "list_type" and isinstance(given, str | bool | int | float):
        text = as_text(given)
        return ConfigError(field, text, f"a list of texts is wanted; {_how_to_quote(field, [text])}")
    # Some inputs are not to be shown.
    return ConfigError(field, found.get("ctx", {}).get("shown") or repr(given), remedy)


def _unquoted(place: tuple[str | int, ...], given: Any, values: dict[str, Any]) -> ConfigError:
    """A text, or one of a list, that was read as something else; how it was written is lost."""
    read = "nothing" if given is None else "a truth" if isinstance(given, bool) else "a number"
    key = ".".join(part for part in place if isinstance(part, str))
    meant: str | list[str] = as_text(given)
    shown = meant
    if isinstance(place[-1], int):
        texts: Any = values
        for part in place[:-1]:
            texts = texts[part]
        meant = list(map(as_text, texts))
        shown = f"[{', '.join(meant)}]"
    remedy = f"a text is wanted, and this was read as {read}; {_how_to_quote(key, meant)}"
    return ConfigError(key, shown, remedy)


def _how_to_quote(key: str, meant: str | list[str]) -> str:
    in_file = key.rpartition(".")[2] + (': ["…"]' if isinstance(meant, list) else ': "…"')
    return f"in a file put quotes around what is written ({in_file}), on the command line quote it: {as_argument(key, meant)}"


def load_config(path: Path) -> Config:
    """The configuration stored in a run directory."""
    return parse_config(yaml.safe_load(path.read_text(encoding="utf-8")))


def dump_config(config: Config) -> str:
    """YAML that `load_config` reads back to an equal configuration."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False, allow_unicode=True)


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    if not isinstance(values, dict) or (prefix and not values):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, below in values.items():
        flat |= flatten(below, f"{prefix}.{key}" if prefix else str(key))
    return flat
