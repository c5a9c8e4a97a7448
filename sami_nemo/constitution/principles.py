"""Principles and their antitheses, as data. A principles file is YAML:

    citation: where the wording comes from
    writer: who or which model wrote it
    principles:
      - name: concise
        statements:
          - {label: concise, text: Summaries should be brief …}
          - {label: not concise, antithesis: true, text: Summaries should be lengthy …}

A principle may have any number of statements: variants of itself and antitheses. A constitution has one statement of
each principle (paper, section 3).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sami_nemo.errors import DataError
from sami_nemo.records import Constitution

SHIPPED = Path(__file__).parent / "principles"


@dataclass(frozen=True)
class Statement:
    """One wording of a principle, or of its antithesis."""

    label: str
    text: str
    antithesis: bool = False


@dataclass(frozen=True)
class Principle:
    """What constitutions choose one statement of."""

    name: str
    statements: tuple[Statement, ...]


@dataclass(frozen=True)
class PrincipleSet:
    """All that constitutions are drawn from."""

    citation: str
    writer: str
    principles: tuple[Principle, ...]

    @property
    def count(self) -> int:
        """Distinct constitutions; the order of statements does not make another one."""
        return math.prod(len(principle.statements) for principle in self.principles)

    @property
    def desired(self) -> Constitution:
        """The constitution of the principles themselves, without any antithesis."""
        chosen = [next(s for s in principle.statements if not s.antithesis) for principle in self.principles]
        return constitution(chosen, range(len(chosen)))


def constitution(chosen: list[Statement], order: Any) -> Constitution:
    """The constitution of one statement per principle (in the set's order), shown in another `order`."""
    return Constitution(
        id="+".join(statement.label for statement in chosen), statements=tuple(chosen[index].text for index in order)
    )


def find_principles(path: str) -> Path:
    """A principles file by path, or by the name of a shipped one.

    Raises:
        DataError: there is none.
    """
    for candidate in (Path(path), SHIPPED / path, SHIPPED / f"{path}.yaml"):
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(file.stem for file in SHIPPED.glob("*.yaml")))
    raise DataError("principles.file", path, f"no such file; give a path or one of {shipped}")


def load_principles(path: str) -> PrincipleSet:
    """Read a principles file.

    Raises:
        DataError: the file is missing or malformed, with the place.
    """
    file = find_principles(path)
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(str(file), "(not YAML)", str(error)) from None
    rows = content.get("principles") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise DataError(str(file), "principles", "must be a list with at least one principle")
    principles = tuple(_principle(row, f"principles[{index}]", file) for index, row in enumerate(rows))
    return PrincipleSet(str(content.get("citation", "")), str(content.get("writer", "")), principles)


def _principle(row: Any, place: str, file: Path) -> Principle:
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not isinstance(row.get("statements"), list):
        raise DataError(str(file), place, "must have a name and a list of statements")
    statements = tuple(
        _statement(entry, f"{place}.statements[{index}]", file) for index, entry in enumerate(row["statements"])
    )
    labels = [statement.label for statement in statements]
    if len(set(labels)) < len(labels):
        raise DataError(str(file), place, f"labels must differ, found {labels}")
    if all(statement.antithesis for statement in statements):
        raise DataError(str(file), place, "needs at least one statement that is not an antithesis")
    return Principle(row["name"], statements)


def _statement(entry: Any, place: str, file: Path) -> Statement:
    known = {"label", "text", "antithesis"}
    if not isinstance(entry, dict) or entry.keys() - known or not {"label", "text"} <= entry.keys():
        raise DataError(str(file), place, "must have a label and a text, and may have antithesis: true")
    text = entry["text"].strip() if isinstance(entry["text"], str) else ""
    if not text or not isinstance(entry["label"], str) or not isinstance(entry.get("antithesis", False), bool):
        raise DataError(str(file), place, "label and text must be text, antithesis true or false")
    return Statement(entry["label"], text, entry.get("antithesis", False))


def dump_principles(principles: PrincipleSet) -> str:
    """A principles file that `load_principles` reads back to equal principles, for people to edit."""
    rows = [
        {
            "name": principle.name,
            "statements": [
                {"label": s.label, **({"antithesis": True} if s.antithesis else {}), "text": s.text}
                for s in principle.statements
            ],
        }
        for principle in principles.principles
    ]
    content = {"citation": principles.citation, "writer": principles.writer, "principles": rows}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
