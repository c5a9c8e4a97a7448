"""From the words of a command line to a `Config`: Hydra puts conf/ and recipes/ together, schema.py checks types.

Hydra's own messages span many lines and name its internals, so names are looked up first, in overrides.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf
from omegaconf.errors import (
    GrammarParseError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

from sami_nemo.config.files import flatten, parse_config
from sami_nemo.config.overrides import CHARACTERS, CONF, RECIPES, Word, is_known, nearest, read_word, unknown_key
from sami_nemo.config.precision import Processor, settle, this_processor
from sami_nemo.config.schema import Config
from sami_nemo.config.spelling import quoted
from sami_nemo.errors import ConfigError, UserError, raise_all
from sami_nemo.run_dir import RunDir

DEFAULT_RECIPE = "sami_smol"
ACTIONS = ("run", "prefetch", "status", "logs", "cancel")


class BesideConf(SearchPathPlugin):
    """Recipes are a group of Hydra's, from beside conf/. As `hydra.searchpath=` their place would be read as a value."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("recipes", str(RECIPES.parent))


Plugins.instance().register(BesideConf)


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
    words: list[Word] = []
    for text in overrides:
        try:
            words.append(read_word(text))
        except ConfigError as error:
            problems.append(error)
    try:
        config, chosen = _build(words, processor)
    except UserError as error:
        problems.append(error)
    raise_all(problems)
    return config, chosen


def _build(words: list[Word], processor: Processor) -> tuple[Config, str | None]:
    """Compose, settle the number formats, and check keys and types."""
    recipe = next((word.value for word in reversed(words) if word.key == "recipe"), DEFAULT_RECIPE)
    own = [word.hydra for word in words if word.key != "recipe" and word.variable is None]
    values = _resolve([*own, f"recipe={quoted(recipe)}", f"recipes@_global_={quoted(recipe)}"])
    for word in words:
        if word.variable is not None:
            _set_variable(values, *word.variable, word.value)
    # In files; those of the command line are known.
    unknown = [unknown_key(key, value) for key, value in flatten(values).items() if not is_known(key)]
    raise_all(unknown)
    begun = RunDir(Path(str(values.get("runs_dir")), str(values.get("name")))).config
    values, chosen = settle(values, begun, processor)
    return parse_config(values), chosen


def _set_variable(values: dict[str, Any], environment: str, name: str, value: str | None) -> None:
    """Not by Hydra: a `${…}` in a variable is the user's."""
    below = values
    for key in environment.split("."):
        if below.get(key) is None:
            below[key] = {}
        below = below[key]
        if not isinstance(below, dict):
            # Of a file; told when types are checked.
            return
    below[name] = value


def _resolve(hydra_overrides: list[str]) -> dict[str, Any]:
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = hydra_compose("config", overrides=hydra_overrides)
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        key = error.full_key or "?"
        raise ConfigError(key, "(missing)", f"give it a value: {key}=VALUE") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "configuration"
        raise ConfigError(place, "(not YAML)", f"{error.problem}; correct it") from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise _not_composed(error) from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _not_composed(error: BaseException) -> ConfigError:
    """Hydra wraps OmegaConf's errors in such as say nothing; a key may lack the name of its file's group."""
    while not str(error).strip() and (cause := error.__cause__ or error.__context__):
        error = cause
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if isinstance(error, InterpolationResolutionError | GrammarParseError):
        reason += f"; for the characters themselves {CHARACTERS}"
    return ConfigError(getattr(error, "full_key", None) or "configuration", "(cannot be put together)", reason)
