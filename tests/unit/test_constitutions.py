"""Principles files and the constitutions drawn from them."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from sami_nemo.constitution.drawing import all_constitutions, draw_constitutions, draw_with_desired
from sami_nemo.constitution.principles import SHIPPED, load_principles
from sami_nemo.errors import ConfigError, DataError

NAMES = sorted(file.stem for file in SHIPPED.glob("*.yaml"))


def normalised(text: str) -> str:
    # The paper's text in hand breaks words at line ends ("poten- tially").
    return " ".join(re.sub(r"(\w)- (\w)", r"\1\2", " ".join(text.split())).split())


@pytest.mark.parametrize("name", NAMES)
def test_shipped_sets_are_the_papers(name: str, shared_data: Path) -> None:
    paper = shared_data.parent / "paper" / "sami.txt"
    if not paper.exists():
        pytest.skip("the paper's text is not here")
    text = normalised(paper.read_text())
    for principle in load_principles(name).principles:
        assert [statement.antithesis for statement in principle.statements] == [False, True]
        for statement in principle.statements:
            assert statement.text in text


@pytest.mark.parametrize("name", NAMES)
def test_shipped_sets_give_four_constitutions(name: str) -> None:
    principles = load_principles(name)
    assert principles.count == 4
    assert len({c.id for c in all_constitutions(principles, 0, "q")}) == 4
    assert "not" not in principles.desired.id
    assert principles.citation and principles.writer


def test_text_is_a_numbered_list() -> None:
    principles = load_principles("summary_mistral_instruct")
    assert principles.desired.text == (
        "1. Summaries should be brief and to the point, avoiding unnecessary details.\n"
        "2. Summaries should be thorough and include all important information from the original post."
    )


def test_draws_are_distinct_and_depend_on_seed_and_query_alone() -> None:
    principles = load_principles("dialogue_claude_opus")
    first = draw_constitutions(principles, 3, 0, "q1")
    assert first == draw_constitutions(principles, 3, 0, "q1")
    assert len({constitution.id for constitution in first}) == 3
    assert any(draw_constitutions(principles, 3, 0, f"q{i}") != first for i in range(2, 9))
    assert any(draw_constitutions(principles, 3, seed, "q1") != first for seed in range(1, 9))


def test_draws_are_uniform_and_shuffled() -> None:
    principles = load_principles("dialogue_claude_opus")
    drawn = [c for i in range(2000) for c in draw_constitutions(principles, 2, 7, f"query {i}")]
    counts = Counter(constitution.id for constitution in drawn)
    # 1,000 of each are expected; five standard deviations are about 140.
    assert len(counts) == 4 and all(abs(count - 1000) < 140 for count in counts.values())
    helpful = [c for c in drawn if c.id == "helpful+harmless"]
    first = sum(c.statements[0] == principles.desired.statements[0] for c in helpful)
    assert abs(first / len(helpful) - 0.5) < 0.1


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="only 4 distinct"):
        draw_constitutions(load_principles("dialogue_claude_opus"), 5, 0, "q")


def test_many_variants_are_not_enumerated(tmp_path: Path) -> None:
    lines = ["principles:"]
    for number in range(20):
        lines += [f"- name: p{number}", "  statements:"]
        lines += [f"  - {{label: p{number}v{v}, text: Text {number}.{v}}}" for v in range(10)]
    (tmp_path / "many.yaml").write_text("\n".join(lines))
    principles = load_principles(str(tmp_path / "many.yaml"))
    assert principles.count == 10**20
    assert len(draw_constitutions(principles, 8, 0, "q")[7].statements) == 20
    first, *others = draw_with_desired(principles, 8, 0, "q")
    assert first.id == principles.desired.id and len({first.id, *(other.id for other in others)}) == 8
    assert sorted(first.statements) == sorted(principles.desired.statements) != list(first.statements)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("principles: []", "principles"),
        ("- a list", "principles"),
        ("principles: [{name: a}]", r"principles\[0\]"),
        ("principles: [{name: a, statements: [{label: x}]}]", r"statements\[0\]"),
        ("principles: [{name: a, statements: [{label: x, text: '  '}]}]", r"statements\[0\]"),
        ("principles: [{name: a, statements: [{label: x, text: t}, {label: x, text: u}]}]", "labels must differ"),
        ("principles: [{name: a, statements: [{label: x, text: t, antithesis: true}]}]", "not an antithesis"),
        ("principles: [{name: a, statements: [{label: x, text: t, antithesys: true}]}]", r"statements\[0\]"),
        ("principles: [", "not YAML"),
    ],
)
def test_malformed_files_name_the_place(tmp_path: Path, content: str, place: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(content)
    with pytest.raises(DataError, match=place) as error:
        load_principles(str(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(DataError, match="summary_claude_opus"):
        load_principles("nowhere.yaml")
