"""Write docs/configuration.md: every key of the configuration, from its schema, and what each recipe changes.

.venv/train/bin/python tools/document_configuration.py [--check]
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from sami_nemo.config.files import flatten
from sami_nemo.config.machine import ClusterConfig, JobConfig
from sami_nemo.config.overrides import RECIPES, ROOT, is_section
from sami_nemo.config.schema import Config

PAGE = ROOT / "docs" / "configuration.md"
HEAD = """# Configuration

Every key, from the schema; `tools/document_configuration.py` writes this page. Give a key on the command line
(`train.lr=1e-5`), or in a recipe of your own in `recipes/`. `GROUP=NAME` chooses a file of `conf/GROUP/`, which states what
differs from the defaults here. `dry_run=true` shows what all of it comes to.

A key without a default has to be stated; the files in `conf/` and the shipped recipes do. `null` is no value. Unless its
meaning says otherwise, a length is in tokens, a time in seconds, and memory in GiB.
`train.precision` and `generate.dtype` may also be `auto`, as in the files of `conf/`: what the machine multiplies fast
(docs/architecture.md).

A text on the command line stands for itself, whatever it looks like: `name=007`, `cluster.default.memory=64`,
`runs_dir=/data/my runs`, as far as the shell hands it over whole. Quotes around all of it are taken off, so
`judge.model='"null"'` is the word; `${KEY}` is the value of another key, and `\\${` those two signs. Lists are
`data.subsets=[a,b]`, with quotes around what is more than a word: `cluster.default.flags='["--gres=gpu:a100:8"]'`. In a file
YAML reads `64`, `yes` or `12:30:00` as other things than texts; such a line is refused until it has quotes.

Variables of stages arrive as written, and no `${…}` of the command line is replaced in them:
`cluster.default.environment.OMP_NUM_THREADS=4`, `cluster.train.environment.NCCL_DEBUG=INFO`.
"""


def render() -> str:
    parts = [HEAD, *_sections(Config, "")]
    parts.append("## Recipes\n\nWhat each states itself, over the files that it chooses.\n")
    parts += [_recipe(path) for path in sorted(RECIPES.glob("*.yaml"))]
    return "\n".join(parts)


def _sections(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """A table of a section's own keys, then the sections below it."""
    below: dict[str, Any] = {
        name: field.annotation for name, field in section.model_fields.items() if is_section(field.annotation)
    }
    own = {name: field for name, field in section.model_fields.items() if name not in below}
    title = f"## {prefix.rstrip('.')}" if prefix else "## The run"
    yield f"{title}\n\n{_summary(section)}\n\n{_table(section, own, prefix)}"
    if section is ClusterConfig:
        stages = ", ".join(f"`{name}`" for name in below if name != "default")
        yield f"### cluster.default\n\n{_summary(JobConfig)} The same keys under {stages} are for the jobs of these stages."
        yield "\n" + _table(JobConfig, dict(JobConfig.model_fields), "cluster.default.")
        return
    for name, kind in below.items():
        yield from _sections(kind, f"{prefix}{name}.")


def _summary(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def _table(section: type[BaseModel], fields: dict[str, FieldInfo], prefix: str) -> str:
    meanings, types = read_source(section, fields)
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        cells = (f"`{prefix}{name}`", types[name], _default(field), meanings[name])
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def read_source(section: type[BaseModel], names: Iterable[str]) -> tuple[dict[str, str], dict[str, str]]:
    """Meaning and type of each field, as the source states them: the text below it and its annotation."""
    [class_] = ast.parse(inspect.getsource(section)).body
    assert isinstance(class_, ast.ClassDef)
    meanings, types, wanted = {}, {}, set(names)
    for statement, after in zip(class_.body, [*class_.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        name = statement.target.id
        if name not in wanted:
            continue
        types[name] = _type(statement.annotation)
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            meanings[name] = " ".join(str(after.value.value).split())
    return meanings, types


WORDS = {
    "PositiveInt": "integer ≥ 1",
    "NonNegativeInt": "integer ≥ 0",
    "PositiveFloat": "number > 0",
    "NonNegativeFloat": "number ≥ 0",
    "PathText": "path or name",
    "WebAddress": "http(s) address",
    "RequestParameters": "names with values",
    "VariableName": "variable's name",
    "Line": "text",
    "str": "text",
    "bool": "true, false",
    "int": "integer",
    "float": "number",
    "None": "null",
}
COMPARISONS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _type(annotation: ast.expr) -> str:
    """An annotation in words."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            return f"{_type(left)} or {_type(right)}"
        case ast.Subscript(value=ast.Name(id="Literal"), slice=options):
            names = options.elts if isinstance(options, ast.Tuple) else [options]
            return ", ".join(f"`{ast.literal_eval(name)}`" for name in names)
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return f"list of {_type(item)}"
        case ast.Subscript(value=ast.Name(id="dict")):
            return "names with texts"
        case ast.Subscript(value=ast.Name(id="Annotated"), slice=ast.Tuple(elts=[kind, ast.Call(keywords=limits)])):
            shown = [f"{COMPARISONS[k.arg]} {ast.unparse(k.value)}" for k in limits if k.arg in COMPARISONS]
            return " ".join([_type(kind), ", ".join(shown)]).strip()
    return WORDS[ast.unparse(annotation)]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    return _value(field.get_default(call_default_factory=True))


def _value(value: Any) -> str:
    """As YAML writes it."""
    return f"`{yaml.safe_dump(value, default_flow_style=True, explicit_end=False).partition('...')[0].strip()}`"


def _recipe(path: Path) -> str:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    chosen = {
        key.removeprefix("override /"): value
        for entry in content.pop("defaults", [])
        if isinstance(entry, dict)
        for key, value in entry.items()
    }
    rows = [f"| `{key.strip('/')}` | {_value(value)} |" for key, value in {**chosen, **flatten(content)}.items()]
    return "\n".join([f"### {path.stem}\n", "| key | value |", "|---|---|", *rows, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not current")
    check, page = parser.parse_args().check, render()
    if not check:
        PAGE.write_text(page, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page:
        print(f"{PAGE.name} = (not current): run tools/document_configuration.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
