"""Texts of the configuration are what was written, or are refused with what to type instead."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from sami_nemo.config import compose as composition
from sami_nemo.config import overrides
from sami_nemo.config.compose import compose
from sami_nemo.config.files import dump_config, load_config, parse_config
from sami_nemo.config.overrides import CONF, FIELDS, LISTS, TEXTS, read_word
from sami_nemo.config.schema import Config
from sami_nemo.config.spelling import quoted
from sami_nemo.errors import ConfigError, UserError
from tests.unit.odd_texts import AWKWARD, LOOK_LIKE_NUMBERS

ENVIRONMENT = "cluster.default.environment"


def variables(*words: str) -> dict[str, str]:
    return compose(list(words)).cluster.default.environment


def refusal(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        compose(list(words))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def arguments_of(hint: str) -> list[str]:
    """What bash makes of a command line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {hint}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def pasted(message: str) -> str:
    """The argument that a message says to type, after bash has read it."""
    assert "quote it: " in message, message
    (argument,) = arguments_of(message.rpartition("quote it: ")[2])
    return argument


def test_variables_on_the_command_line_arrive_as_written(tmp_path: Path) -> None:
    given = {f"X{number}": value for number, value in enumerate([*LOOK_LIKE_NUMBERS, *AWKWARD])}
    config = compose([f"{ENVIRONMENT}.{name}={value}" for name, value in given.items()])
    assert config.cluster.default.environment == given
    # In quotes, as the refusals say.
    assert variables(*(f"{ENVIRONMENT}.{name}={quoted(value)}" for name, value in given.items())) == given
    (tmp_path / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(tmp_path / "config.yaml") == config


def test_quotes_around_a_variable_are_taken_off() -> None:
    assert variables(f'{ENVIRONMENT}.X="1.10"', f"{ENVIRONMENT}.Y='a, b'") == {"X": "1.10", "Y": "a, b"}
    assert variables(f"{ENVIRONMENT}={{X: '1.10', Y: b}}", f"{ENVIRONMENT}.Y=c") == {"X": "1.10", "Y": "c"}


@pytest.mark.parametrize("value", ["1.10", "2024_01_02", "1e-5", "4", "true", "null", "1_000"])
def test_variables_given_together_are_texts(value: str) -> None:
    message = refusal(f"{ENVIRONMENT}={{X: {value}}}")
    assert message.startswith(f"{ENVIRONMENT}.X = ")
    assert variables(pasted(message))["X"]


def test_the_word_null_is_refused_without_quotes() -> None:
    message = refusal(f"{ENVIRONMENT}.X=null")
    assert message.startswith(f"{ENVIRONMENT}.X = null: ")
    assert variables(pasted(message)) == {"X": "null"}


def test_a_variable_with_torn_quotes_says_how_to_write_it() -> None:
    for value in ("'a' b", "'a','b'", '"a', "'it''s", "'a\\'"):
        assert variables(pasted(refusal(f"{ENVIRONMENT}.X={value}"))) == {"X": value}


@pytest.mark.parametrize(
    "name", ["A-B", "1X", "FOO BAR", "", "A.B", "A$", "é", "UID", "SECONDS", "BASH_VERSINFO", "_", "stage"]
)
def test_a_name_that_bash_cannot_export_is_refused(name: str, own_conf: Path) -> None:
    assert refusal(f"{ENVIRONMENT}.{name}=x").startswith(f"{ENVIRONMENT} = {name}: ")
    assert refusal("cluster=mine", in_file(own_conf, f"{name!r}: x")).startswith(f"{ENVIRONMENT} = {name!r}: ")


@pytest.mark.parametrize("value", ["a\nb", "a\n", "\0", "a\udcff"])
def test_a_value_that_is_no_line_is_refused(value: str) -> None:
    assert ENVIRONMENT in refusal(f"{ENVIRONMENT}.X={value}")


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of conf/ to put a user's files in."""
    directory = tmp_path / "conf"
    shutil.copytree(CONF, directory)
    monkeypatch.setattr(composition, "CONF", directory)
    monkeypatch.setattr(overrides, "CONF", directory)
    return directory


def in_file(conf: Path, *lines: str) -> str:
    """Write cluster=mine with these variables."""
    text = "name: mine\nscheduler: slurm\ndefault:\n  environment:\n" + "".join(f"    {line}\n" for line in lines)
    (conf / "cluster" / "mine.yaml").write_text(text, encoding="utf-8")
    return "cluster=mine"


def test_variables_in_a_file_arrive_as_written_or_are_refused(own_conf: Path) -> None:
    written = [
        *LOOK_LIKE_NUMBERS,
        "null",
        "Null",
        "NULL",
        "12:30:00.5",
        "1e5",
        "no",
        "on",
        "1:30",
        "+.inf",
        "plain text",
    ]
    given = {f"X{number}": value for number, value in enumerate(written) if value not in ("?", "???")}
    with pytest.raises(UserError) as caught:
        variables(in_file(own_conf, *(f"{name}: {value}" for name, value in given.items())))
    refused = {}
    for line in str(caught.value).splitlines():
        name = line.removeprefix(f"{ENVIRONMENT}.").partition(" = ")[0]
        assert name in given and f'in a file put quotes around what is written ({name}: "…")' in line
        # The same key on the command line wins over the file.
        refused[name] = pasted(line)
    assert {given[name] for name in refused} >= {
        *(
            "1.10",
            "2024_01_02",
            "1e-5",
            "010",
            "yes",
            "True",
            "1_000",
            "0x10",
            "12:30:00",
            "null",
            "~",
            ".5",
            "+1",
            "1.",
        ),
    }
    rest = {name: value for name, value in given.items() if name not in refused}
    assert "2024-01-02" in rest.values() and "plain text" in rest.values()
    assert variables(in_file(own_conf, *(f"{name}: {value}" for name, value in rest.items()))) == rest
    lines = [f"{name}: {given[name]}" for name in refused]
    assert variables(in_file(own_conf, *lines), *refused.values()).keys() == refused.keys()
    for quote in ("'", '"'):
        assert (
            variables(in_file(own_conf, *(f"{name}: {quote}{value}{quote}" for name, value in given.items()))) == given
        )


@pytest.mark.parametrize("value", ["", "[1]", "{a: 1}", "???"])
def test_a_variable_in_a_file_without_a_text_is_refused(value: str, own_conf: Path) -> None:
    assert refusal(in_file(own_conf, f"X: {value}")).startswith(f"{ENVIRONMENT}.X = ")


def test_references_in_a_file_are_those_of_hydra(own_conf: Path) -> None:
    assert variables(in_file(own_conf, "X: ${name}/$HOME", r"Y: \${HOME}")) == {"X": "sami_smol/$HOME", "Y": "${HOME}"}
    for value in ("${HOME}", "a${b"):
        message = refusal(in_file(own_conf, f"X: {value}"))
        assert "default.environment.X = (cannot be put together)" in message and r"write \${ in place" in message


def test_a_file_that_is_no_yaml_is_named(own_conf: Path) -> None:
    assert refusal(in_file(own_conf, "X: ?")).startswith(f"{own_conf}/cluster/mine.yaml, line 5 = (not YAML): ")


@pytest.mark.parametrize("name", ["1", "NO", "on", "1.5"])
def test_a_name_that_yaml_takes_for_something_else_is_told(name: str, own_conf: Path) -> None:
    message = refusal(in_file(own_conf, f"{name}: x"))
    assert message.startswith(f"{ENVIRONMENT} = ") and "quote it" in message


@pytest.mark.parametrize("name", ["A-B", "A=B", "FOO BAR", "A.B"])
def test_a_name_in_a_file_is_checked_too(name: str, own_conf: Path) -> None:
    assert refusal(in_file(own_conf, f"{name}: x")).startswith(f"{ENVIRONMENT} = '{name}': no name of a variable")


# A recipe has to be there.
FREE_TEXTS = sorted(TEXTS - {"recipe"})


@pytest.mark.parametrize("key", FREE_TEXTS)
def test_every_text_of_the_schema_is_taken_as_typed(key: str) -> None:
    for value in ("42", "007", "1e3", "2024_01_02", "1.10", "true", "a,b"):
        word = read_word(f"{key}={value}")
        assert word.value == OverridesParser.create().parse_override(word.hydra).value() == value


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    return compose(["recipe=sami_debug"]).model_dump()


@pytest.mark.parametrize("key", FREE_TEXTS)
def test_every_text_of_the_schema_refuses_numbers_of_files(key: str, values: dict[str, Any]) -> None:
    for value, typed in ((42, "42"), (1e3, "1000.0"), (True, "true")):
        with pytest.raises(ConfigError) as caught:
            parse_config(with_value(values, key, value))
        message = str(caught.value)
        assert message.startswith(f"{key} = ") and "\n" not in message
        # The names of choices are told instead.
        if "Input should be" not in message:
            word = read_word(pasted(message))
            assert (word.key, word.value) == (key, typed)


@pytest.mark.parametrize("key", sorted(LISTS))
def test_every_list_of_texts_says_how_to_quote_it(key: str, values: dict[str, Any]) -> None:
    for written, meant in (([1, "b"], ["1", "b"]), ("one", ["one"]), (5, ["5"])):
        with pytest.raises(ConfigError) as caught:
            parse_config(with_value(values, key, written))
        typed = read_word(pasted(str(caught.value).splitlines()[0]))
        assert (typed.key, typed.value) == (key, meant)


def with_value(values: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy of nested values with another one at a dotted key."""
    first, _, rest = key.partition(".")
    return values | {first: with_value(values[first], rest, value) if rest else value}


def test_the_schema_s_texts_lists_and_names_are_told_apart() -> None:
    assert {"name", "runs_dir", "judge.model", "model.path", "train.optimizer", "cluster.default.memory"} <= TEXTS
    assert {"data.subsets", "principles.names", "cluster.train.flags", "cluster.default.mounts"} <= LISTS
    assert not TEXTS & LISTS
    assert {"seed", "train.lr", "judge.both_orders", "model.num_layers", ENVIRONMENT} <= set(FIELDS) - TEXTS - LISTS
    assert {key for key in FIELDS if key.endswith(".environment")} == overrides.ENVIRONMENTS


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("name=42", "42"),
        ("name=007", "007"),
        ("name=1e3", "1e3"),
        ("name=2024_01_02", "2024_01_02"),
        ("judge.model=4", "4"),
        ("model.path=7", "7"),
        ("cluster.default.time=60", "60"),
        ("cluster.default.memory=64", "64"),
        ("runs_dir=my runs (v2), é=1+[x]%j'&#{$y}", "my runs (v2), é=1+[x]%j'&#{$y}"),
    ],
)
def test_numbers_and_signs_on_the_command_line_are_texts_where_texts_are_wanted(word: str, expected: str) -> None:
    found: Any = compose([word])
    for part in word.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == expected


@pytest.mark.parametrize(
    ("written", "flags"),
    [
        ("[--gres=gpu:a100:8]", ["--gres=gpu:a100:8"]),
        ("[--gres=gpu:a100:8,--exclusive]", ["--gres=gpu:a100:8", "--exclusive"]),
        ("['--gres=gpu:a100:8', --begin=now+1hour]", ["--gres=gpu:a100:8", "--begin=now+1hour"]),
        ("[--comment=it's  here]", ["--comment=it's  here"]),
        ('[--comment="a"]', ['--comment="a"']),
        ("[--comment=$x`y`\\]", ["--comment=$x`y`\\"]),
        ("--gres=gpu:a100:8", ["--gres=gpu:a100:8"]),
        ("--exclusive", ["--exclusive"]),
        ("--exclusive,--hold", ["--exclusive", "--hold"]),
        ("[1]", ["1"]),
        ("5", ["5"]),
    ],
)
def test_the_hint_for_flags_works_when_pasted(written: str, flags: list[str]) -> None:
    key = "cluster.default.flags"
    argument = pasted(refusal("cluster=slurm", f"{key}={written}"))
    assert compose(["cluster=slurm", argument]).cluster.default.flags == flags


def test_a_number_that_is_none_is_not_told_to_be_quoted() -> None:
    message = refusal("train.lr=[1")
    assert message.startswith("train.lr = [1: not a value") and "quote" not in message


def test_references_to_other_keys_are_whole() -> None:
    """And stand for themselves with a backslash."""
    assert compose(["runs_dir=runs of ${recipe}"]).runs_dir == "runs of sami_smol"
    assert compose([r"runs_dir=a\${b}"]).runs_dir == "a${b}"
    assert refusal("runs_dir=a${b}").startswith("runs_dir = ")
    message = refusal("runs_dir=a${b")
    assert message.startswith("runs_dir = a${b: ")
    (argument,) = arguments_of(message.rpartition(": ")[2])
    assert compose([argument]).runs_dir == "a${b"


def test_quotes_are_those_of_hydra() -> None:
    for text in [*LOOK_LIKE_NUMBERS, *AWKWARD, '\\"', '\\\\"', 'a"\\', "\\\\\\", '"']:
        assert OverridesParser.create().parse_override(f"k={quoted(text)}").value() == text


def test_choices_are_found_by_their_names_as_written(own_conf: Path) -> None:
    for name in ("1e3", "my site é", "007"):
        (own_conf / "cluster" / f"{name}.yaml").write_text("name: own\nscheduler: slurm\n")
        assert compose([f"cluster={name}"]).cluster.name == "own"
    assert re.match("cluster = 1000.0: no such choice", refusal("cluster=1000.0"))


def test_the_schema_has_no_other_kind_of_text() -> None:
    """A new kind of field has to be told to `overrides._kinds`."""
    known = {int, float, bool, str, list, dict, type(None)}
    assert set().union(*(overrides._kinds(annotation) for annotation in FIELDS.values())) <= known
    assert Config.model_fields["name"].annotation is str
