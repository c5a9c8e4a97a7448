"""The words of a command line: `key=value`, `GROUP=NAME`, `recipe=NAME`.

A text stands for itself. By Hydra's grammar `1.10` is a number, `a,b` two values and `a\\\\b` has one backslash; the schema
knows better where a text is wanted. All other values are in Hydra's grammar.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, TypeAdapter, ValidationError

from sami_nemo.config.schema import Config
from sami_nemo.config.spelling import as_argument, quoted
from sami_nemo.config.types import VariableToExport
from sami_nemo.errors import ConfigError

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
RECIPES = ROOT / "recipes"
GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())


def schema_fields(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """Types of all fields by dotted name."""
    fields: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        below = [kind for kind in (field.annotation, *get_args(field.annotation)) if is_section(kind)]
        fields |= schema_fields(below[0], f"{prefix}{name}.") if below else {prefix + name: field.annotation}
    return fields


def is_section(kind: Any) -> bool:
    """Whether a field's type is a group of settings."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kinds(annotation: Any) -> set[Any]:
    """What a value may be: the members of a union, without the rules of `Annotated`; a choice of texts is a text."""
    if get_origin(annotation) is Annotated:
        return _kinds(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return {str}
    if get_origin(annotation) is list:
        return {list}
    if get_origin(annotation) is dict:
        return {dict}
    return set().union(*map(_kinds, get_args(annotation))) if get_args(annotation) else {annotation}


# OmegaConf's spelling of a ${ that begins no reference.
ESCAPED = r"\${"
CHARACTERS = f"write {ESCAPED} in place of ${{"
FIELDS = schema_fields(Config)
KEYS = list(FIELDS)
TEXTS = {key for key, annotation in FIELDS.items() if str in _kinds(annotation)}
LISTS = {key for key, annotation in FIELDS.items() if list in _kinds(annotation)}
MAPPINGS = {key for key, annotation in FIELDS.items() if dict in _kinds(annotation)}
ENVIRONMENTS = {key for key in MAPPINGS if key.endswith(".environment")}


@dataclass(frozen=True)
class Word:
    """One setting of a command line."""

    key: str
    value: Any
    """A text, where the key takes one; else what Hydra's grammar makes of it."""
    variable: tuple[str, str] | None = None
    """Of a job's environment: its key without the name, and the name."""
    hydra: str = ""
    """The same in Hydra's grammar; a variable has no need of it."""


def read_word(word: str) -> Word:
    """Look up the key, and read the value as the key takes it.

    Raises:
        ConfigError: there is no such key or choice, or it is no such form.
    """
    if "=" not in word or word.startswith(("+", "~", "-")):
        raise ConfigError("argument", word, "give recipe=NAME, GROUP=NAME or key=value; --help explains")
    key, _, written = word.partition("=")
    if not _is_unicode(word):
        raise ConfigError("argument", ascii(word), "has bytes that are not UTF-8; write it in UTF-8")
    environment = environment_of(key)
    if environment is not None:
        return _read_variable(environment, key.removeprefix(f"{environment}."), written)
    if key == "recipe" or key in GROUPS:
        choice = str(_read_text(key, written))
        _check_choice(key, choice, RECIPES if key == "recipe" else CONF / key)
        return Word(key, choice, hydra=f"{key}={quoted(choice)}")
    if key in TEXTS:
        text = _read_text(key, written)
        _check_references(key, text)
        return Word(key, text, hydra=f"++{key}={'null' if text is None else quoted(text)}")
    override = _parse(key, written)
    if not is_known(key):
        raise unknown_key(key, override.get_value_element_as_str())
    # A group states only what differs from the schema's defaults, so a key may have to be added.
    return Word(key, override.value(), hydra=f"++{word}")


def _is_unicode(text: str) -> bool:
    """Whether it can be written; bytes of a command line that are not UTF-8 come as half characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def environment_of(key: str) -> str | None:
    """The environment of jobs that a key names a variable of: `cluster.train.environment` of `….NAME`."""
    return next((environment for environment in ENVIRONMENTS if key.startswith(f"{environment}.")), None)


def _read_variable(environment: str, name: str, written: str) -> Word:
    key = f"{environment}.{name}"
    try:
        TypeAdapter(VariableToExport).validate_python(name, strict=True)
    except ValidationError as error:
        raise ConfigError(environment, name, error.errors()[0]["msg"].removeprefix("Value error, ")) from None
    return Word(key, _read_text(key, written), (environment, name))


def _read_text(key: str, written: str) -> str | None:
    """The text itself, or what is between its quotes; None if it is the word null."""
    if written.lower() == "null":
        return None
    if not written.startswith(("'", '"')):
        return written
    text = _parse(key, written).value()
    assert isinstance(text, str)
    return text


def _check_references(key: str, text: str | None) -> None:
    """`${KEY}` stands for the value of another key."""
    try:
        OmegaConf.create({"text": text})
    except OmegaConfBaseException:
        remedy = f"has no whole ${{KEY}}; for the characters themselves {CHARACTERS}"
        raise ConfigError(key, text, f"{remedy}: {as_argument(key, str(text).replace('${', ESCAPED))}") from None


def _parse(key: str, written: str) -> Override:
    try:
        override = OverridesParser.create().parse_override(f"{key}={written}")
    except HydraException as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(key, written, f"not a value ({reason}); {_remedy(key, written)}") from None
    if override.is_sweep_override():
        remedy = _how_to_quote(key, written) or "give one value; several need a run each"
        raise ConfigError(key, written, remedy)
    return override


def _how_to_quote(key: str, written: str) -> str | None:
    """What to type for a text or a list of texts."""
    if key in LISTS:
        return f"quote it: {as_argument(key, _elements(written))}"
    is_text = key in TEXTS or environment_of(key) is not None
    return f"quote it: {as_argument(key, written)}" if is_text else None


def _remedy(key: str, written: str) -> str:
    how = _how_to_quote(key, written)
    if how is not None:
        return how
    if key in ENVIRONMENTS:
        return f"give one variable at a time: {key}.NAME=VALUE"
    return "docs/configuration.md says what it takes" if is_known(key) else f"unknown key{nearest(key, KEYS)}"


def _elements(written: str) -> list[str]:
    """Of a list that Hydra's grammar does not take: what stands between its commas, without quotes around it."""
    inside = re.sub(r"^\[(.*)\]$", r"\1", written.strip(), flags=re.DOTALL)
    elements = (re.sub(r"^(['\"])(.*)\1$", r"\2", element.strip(), flags=re.DOTALL) for element in inside.split(","))
    return [element for element in elements if element]


def _check_choice(field: str, name: str, directory: Path) -> None:
    names = sorted(path.stem for path in directory.glob("*.yaml"))
    if name in names:
        return
    if "," in name:
        raise ConfigError(field, name, "give one value; several need a run each")
    raise ConfigError(field, name, f"no such choice{nearest(name, names)}; there are {', '.join(names)}")


def is_known(key: str) -> bool:
    """Whether the schema has it. In a job's environment and in an endpoint's request names are the user's."""
    return key in FIELDS or any(key.startswith(f"{mapping}.") for mapping in MAPPINGS)


def unknown_key(key: str, value: Any) -> ConfigError:
    sections = {name.partition(".")[0] for name in KEYS if "." in name}
    remedy = "a group; choose one of its files" if key in sections else f"unknown key{nearest(key, KEYS)}"
    return ConfigError(key, value, remedy)


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean …?`, or nothing if nothing is near."""
    close = difflib.get_close_matches(name, list(choices), n=1)
    return f"; did you mean {close[0]}?" if close else ""
