"""A configuration as plain values and as a file, and which of its settings results depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sami_nemo.config.schema import Config
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
        raise together([_problem(found) for found in error.errors()]) from None


def _problem(found: Any) -> ConfigError:
    """What pydantic found, in our words."""
    field = ".".join(str(part) for part in found["loc"])
    if found["type"] == "extra_forbidden":
        return ConfigError(field, found["input"], "unknown key; remove it or correct its spelling")
    if found["type"] == "missing":
        return ConfigError(field, "(missing)", "give it a value")
    # Some inputs are not to be shown.
    shown = found.get("ctx", {}).get("shown") or repr(found["input"])
    return ConfigError(field, shown, found["msg"].removeprefix("Value error, "))


def load_config(path: Path) -> Config:
    """The configuration stored in a run directory."""
    return parse_config(yaml.safe_load(path.read_text()))


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
