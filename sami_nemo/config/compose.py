"""From the words of a command line to a `Config`: Hydra puts conf/ and recipes/ together, schema.py checks types.

Hydra's own messages span many lines and name its internals, so names are looked up here first.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel

from sami_nemo.config.files import flatten, parse_config
from sami_nemo.config.precision import Processor, settle, this_processor
from sami_nemo.config.schema import Config
from sami_nemo.errors import ConfigError, UserError, raise_all
from sami_nemo.run_dir import RunDir

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
RECIPES = ROOT / "recipes"
DEFAULT_RECIPE = "sami_smol"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
# Recipes are a group of Hydra's, from beside conf/.
SEARCH_PATH = [f"hydra.searchpath=[{ROOT.as_uri()}]"]
ACTIONS = ("run", "prefetch", "status", "logs", "cancel")


@dataclass(frozen=True)
class Request:
    """What a command line asks for besides an experiment."""

    overrides: list[str]
    action: str = "run"
    stage: str | None = None
    """Of action=logs."""
    dry_run: bool = False


def split_arguments(arguments: list[str]) -> Request:
    """Separate `action=`, `stage=` and `dry_run=`, which are no part of an experiment, from the overrides.

    Raises:
        ConfigError: they have other values than they may have.
    """
    given: dict[str, str] = {}
    overrides = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in ("action", "stage", "dry_run"):
            given[key] = value
        else:
            overrides.append(argument)
    action, dry_run = given.get("action", "run"), given.get("dry_run", "false").lower()
    if action not in ACTIONS:
        raise ConfigError("action", action, f"no such action{nearest(action, ACTIONS)}; there are {', '.join(ACTIONS)}")
    if dry_run not in ("true", "false"):
        raise ConfigError("dry_run", dry_run, "set true or false")
    if "stage" in given and action != "logs":
        raise ConfigError("stage", given["stage"], "belongs to action=logs")
    return Request(overrides, action, given.get("stage"), dry_run == "true")


def compose(overrides: list[str]) -> Config:
    """The configuration of a recipe with overrides.

    Args:
        overrides: `recipe=NAME`, `GROUP=NAME` and `key=value`, in Hydra's grammar of values.

    Raises:
        UserError: everything that is wrong, a line each.
    """
    return compose_for(overrides, this_processor())[0]


def compose_for(overrides: list[str], processor: Processor) -> tuple[Config, str | None]:
    """Like `compose`, on a machine with this processor.

    Returns:
        The configuration, and which number formats were chosen where it says `auto`, and why; None if it nowhere does.
    """
    problems: list[UserError] = []
    accepted: list[str] = []
    recipe = DEFAULT_RECIPE
    for text in overrides:
        try:
            key, choice = _read_override(text)
        except ConfigError as error:
            problems.append(error)
            continue
        if key == "recipe":
            recipe = choice
        else:
            # A group states only what differs from the schema's defaults, so a key may have to be added.
            accepted.append(text if key in GROUPS else f"++{text}")
    try:
        config, chosen = _build([*SEARCH_PATH, *accepted, f"recipe={recipe}", f"recipes@_global_={recipe}"], processor)
    except UserError as error:
        problems.append(error)
    raise_all(problems)
    return config, chosen


def _build(hydra_overrides: list[str], processor: Processor) -> tuple[Config, str | None]:
    """Compose, settle the number formats, and check keys and types."""
    values = _resolve(hydra_overrides)
    # In files; those of the command line are known.
    unknown = [_unknown_key(key, value) for key, value in flatten(values).items() if not _is_known(key)]
    raise_all(unknown)
    begun = RunDir(Path(str(values.get("runs_dir")), str(values.get("name")))).config
    values, chosen = settle(values, begun, processor)
    return parse_config(values), chosen


def _read_override(text: str) -> tuple[str, str]:
    """Key and value of `recipe=NAME`, `GROUP=NAME` or `key=value`.

    Raises:
        ConfigError: there is no such key or choice, or it is no such form.
    """
    override = _parse(text)
    key, value = override.key_or_group, override.get_value_element_as_str()
    if key == "recipe":
        value = str(override.value())
        _check_choice("recipe", value, RECIPES)
    elif key in GROUPS:
        _check_choice(key, str(override.value()), CONF / key)
    elif not _is_known(key):
        raise _unknown_key(key, value)
    return key, value


def _parse(text: str) -> Override:
    if "=" not in text or text.startswith(("+", "~", "-")):
        raise ConfigError("argument", text, "give recipe=NAME, GROUP=NAME or key=value; --help explains")
    key, _, value = text.partition("=")
    try:
        override = OverridesParser.create().parse_override(text)
    except HydraException as error:
        raise ConfigError(key, value, f"not a value ({_first_line(error)}); quote it: '{key}=\"{value}\"'") from None
    if override.is_sweep_override():
        raise ConfigError(key, value, "give one value; several need a run each")
    return override


def _check_choice(field: str, name: str, directory: Path) -> None:
    names = sorted(path.stem for path in directory.glob("*.yaml"))
    if name not in names:
        raise ConfigError(field, name, f"no such choice{nearest(name, names)}; there are {', '.join(names)}")


def _is_known(key: str) -> bool:
    # In a job's environment and in an endpoint's request names are the user's.
    return key in KEYS or key.rpartition(".")[0].endswith(".environment") or ".request." in key


def _unknown_key(key: str, value: Any) -> ConfigError:
    sections = {name.partition(".")[0] for name in KEYS if "." in name}
    remedy = "a group; choose one of its files" if key in sections else f"unknown key{nearest(key, KEYS)}"
    return ConfigError(key, value, remedy)


def schema_keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all fields."""
    keys = []
    for name, field in section.model_fields.items():
        below = [kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)]
        keys += schema_keys(below[0], f"{prefix}{name}.") if below else [prefix + name]
    return keys


def is_section(kind: Any) -> bool:
    """Whether a field's type is a group of settings."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


KEYS = schema_keys(Config)


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing if nothing is near."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _resolve(hydra_overrides: list[str]) -> dict[str, Any]:
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("config", overrides=hydra_overrides)
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "?"
        raise ConfigError(key, "(missing)", f"give it a value: {key}=VALUE") from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError("configuration", "(cannot be put together)", _first_line(error)) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
