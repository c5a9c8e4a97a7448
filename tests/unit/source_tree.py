"""Reads source files without running them: what they import, which lines stand twice, how long they are."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path


@dataclass(frozen=True)
class Import:
    """One module of the tree imports another."""

    place: str
    """File and line."""
    importer: str
    imported: str

    def __str__(self) -> str:
        return f"{self.place}: imports {self.imported}"


def source_files(root: Path, folders: Sequence[str]) -> list[Path]:
    return sorted(path for folder in folders for path in (root / folder).rglob("*.py"))


def read_modules(root: Path, folders: Sequence[str]) -> dict[str, Path]:
    """Files by the dotted names that they are imported by."""
    modules = {}
    for path in source_files(root, folders):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def read_imports(root: Path, modules: Mapping[str, Path]) -> list[Import]:
    """All imports of the tree's own modules, wherever they stand: in functions and under TYPE_CHECKING too."""
    return [found for name in modules for found in _imports_of(root, modules, name)]


def _imports_of(root: Path, modules: Mapping[str, Path], importer: str) -> Iterator[Import]:
    path = modules[importer]
    for node in ast.walk(ast.parse(path.read_text())):
        for name in _names(node, importer, path.name == "__init__.py"):
            module = name if name in modules else name.rpartition(".")[0]
            if module in modules:
                yield Import(f"{path.relative_to(root)}:{node.lineno}", importer, module)


def _names(node: ast.AST, importer: str, is_package: bool) -> list[str]:
    """What an import statement names, with the module before each name; nothing of other statements."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        package = importer.split(".") if is_package else importer.split(".")[:-1]
        above = package[: len(package) - node.level + 1]
        base = ".".join([*above, base] if base else above)
    return [f"{base}.{alias.name}" for alias in node.names]


def find_circle(imports: Sequence[Import]) -> list[Import]:
    """Imports that lead from a module back to it; none if there is no such way."""
    between = {(found.importer, found.imported): found for found in imports}
    sorter: TopologicalSorter[str] = TopologicalSorter()
    for importer, imported in between:
        sorter.add(importer, imported)
    try:
        sorter.prepare()
    except CycleError as error:
        # Each imports the one before it.
        return [between[importer, imported] for importer, imported in pairwise(reversed(error.args[1]))]
    return []


def lines_that_count(path: Path) -> list[tuple[int, str]]:
    """Lines with their numbers, stripped: all but blank ones, comments and imports."""
    text = path.read_text()
    imports: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            imports |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    numbered = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    return [(number, line) for number, line in numbered if line and line[0] != "#" and number not in imports]


def stretches_twice(root: Path, folders: Sequence[str], length: int) -> list[str]:
    """Both places of every stretch of so many equal lines; of a longer one only where it begins."""
    seen: dict[tuple[str, ...], tuple[Path, int, int]] = {}
    found: list[str] = []
    for path in source_files(root, folders):
        lines = lines_that_count(path)
        before: tuple[Path, int] | None = None
        for at in range(len(lines) - length + 1):
            stretch = tuple(line for _, line in lines[at : at + length])
            first_path, first_at, first_line = seen.setdefault(stretch, (path, at, lines[at][0]))
            # Not with itself, nor with what overlaps it.
            if first_path == path and at - first_at < length:
                before = None
                continue
            if before != (first_path, first_at - 1):
                places = (
                    f"{file.relative_to(root)}:{line}"
                    for file, line in ((first_path, first_line), (path, lines[at][0]))
                )
                found.append(" and ".join(places))
            before = first_path, first_at
    return found


def too_long(root: Path, folders: Sequence[str], file_lines: int, function_lines: int) -> list[str]:
    """Files and functions of more lines than these."""
    found = []
    for path in source_files(root, folders):
        text = path.read_text()
        place, count = path.relative_to(root), len(text.splitlines())
        if count > file_lines:
            found.append(f"{place}: {count} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                size = (node.end_lineno or node.lineno) - node.lineno + 1
                if size > function_lines:
                    found.append(f"{place}:{node.lineno}: {node.name} has {size} lines")
    return found
