"""The rows of files of queries: JSON, CSV and Parquet. What cannot be read is refused with file and line."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sami_nemo.errors import DataError

PARQUET = ".parquet"
# `.json` and `.jsonl` are not told apart by their names: both hold a list, or an object in each line.
TEXT_FORMATS = (".jsonl", ".json", ".csv")
FORMATS = (*TEXT_FORMATS, *(f"{ending}.gz" for ending in TEXT_FORMATS), PARQUET)
# Files that begin so have no lines in their bytes.
UTF_16 = "is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"
FOREIGN = {b"\xff\xfe": UTF_16, b"\xfe\xff": UTF_16, b"\x1f\x8b": "is packed by gzip; its name must end in .gz"}
PARQUET_MARK = b"PAR1"
# Besides what is no JSON at all: numbers of thousands of digits, and a thousand brackets in one another.
NOT_JSON = (ValueError, RecursionError)

NumberedRow = tuple[int, Any]
"""Line of a text file, or number of a row, from 1; and what stands there: an object, if the file is sound."""


def ending_of(name: str) -> str | None:
    """Which of `FORMATS` a file has by its name; None: another."""
    return next((ending for ending in FORMATS if name.lower().endswith(ending)), None)


def file_rows(file: Path) -> Iterator[NumberedRow]:
    """Every row of a file of one of `FORMATS`.

    Raises:
        DataError: the file cannot be read, with the line where that is.
    """
    ending = ending_of(file.name)
    assert ending is not None
    if ending == PARQUET:
        return enumerate(_parquet_rows(file), start=1)
    return _csv_rows(file) if ending.startswith(".csv") else _json_rows(file)


def check_opens(file: Path) -> None:
    """The first row of a file can be read; of Parquet, where nothing reads it, that the file is whole.

    Raises:
        DataError: it cannot be read.
    """
    if not can_be_read(file):
        _check_parquet_marks(file)
        return
    next(file_rows(file), None)


def can_be_read(file: Path) -> bool:
    """Whether this environment reads files of this format: a launcher on a login node has no library for Parquet."""
    return ending_of(file.name) != PARQUET or importlib.util.find_spec("pyarrow") is not None


def _check_parquet_marks(file: Path) -> None:
    try:
        with file.open("rb") as content:
            marks = [content.read(4)]
            content.seek(max(0, file.stat().st_size - 4))
            marks.append(content.read(4))
    except OSError as error:
        raise DataError("data.source", file, f"cannot be read: {error}") from None
    if marks != [PARQUET_MARK, PARQUET_MARK]:
        raise DataError("data.source", file, "is not Parquet, or not whole; fetch or write it again")


def _parquet_rows(file: Path) -> Iterator[dict[str, Any]]:
    import pyarrow.parquet

    try:
        for batch in pyarrow.parquet.ParquetFile(file).iter_batches():
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError("data.source", file, f"is not Parquet: {error}") from None


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text file, packed or not, without a byte-order mark.

    Lines are read as bytes and decoded one by one: text files decode whole blocks, and would name a line before the
    broken one.
    """
    done = 0
    try:
        with _open(file) as content:
            for line in content:
                if not done and (complaint := FOREIGN.get(line[:2])):
                    raise DataError("data.source", file, complaint)
                text = line.decode("utf-8-sig" if not done else "utf-8")
                done += 1
                yield done, text
    except UnicodeDecodeError as error:
        place = f"{file}, line {done + 1}"
        remedy = f"is not UTF-8 ({error.reason}); save it as UTF-8 (of Latin-1: iconv -f LATIN1 -t UTF-8)"
        raise DataError("data.source", place, remedy) from None
    except (OSError, zlib.error, EOFError) as error:
        raise DataError("data.source", f"{file}, line {done + 1}", f"cannot be read: {error}") from None


def _open(file: Path) -> gzip.GzipFile | IO[bytes]:
    return gzip.open(file) if file.name.lower().endswith(".gz") else file.open("rb")


def _json_rows(file: Path) -> Iterator[NumberedRow]:
    """The members of one list, or the objects of lines."""
    # datasets' own JSON reader names no line when a file is broken, which is what a user needs.
    first = next((line for _, line in _lines(file) if line.strip()), "")
    if first.lstrip().startswith("["):
        try:
            members = json.loads("".join(line for _, line in _lines(file)))
        except NOT_JSON as error:
            # Lines that are lists by themselves are rows, though none that holds a query.
            if not _is_json(first):
                raise _not_json(file, getattr(error, "lineno", 1), error) from None
        else:
            yield from enumerate(members, start=1)
            return
    for number, line in _lines(file):
        if line.strip():
            yield number, _parse(file, number, line)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except NOT_JSON:
        return False
    return True


def _parse(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except NOT_JSON as error:
        raise _not_json(file, number, error) from None


def _not_json(file: Path, line: int, error: Exception) -> DataError:
    place, reason = f"{file}, line {line}", str(error)
    if isinstance(error, json.JSONDecodeError):
        place, reason = f"{place}, column {error.colno}", error.msg
    return DataError("data.source", place, f"is not JSON ({reason}); correct or remove the line")


def _csv_rows(file: Path) -> Iterator[NumberedRow]:
    # The reader joins quoted values over lines by itself, and counts lines.
    reader = csv.DictReader((text for _, text in _lines(file)), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                remedy = f"has not as many values as the first line has names ({len(reader.fieldnames or [])})"
                raise DataError("data.source", f"{file}, line {reader.reader.line_num}", remedy)
            yield reader.reader.line_num, row
    except csv.Error as error:
        place = f"{file}, line {reader.reader.line_num}"
        raise DataError("data.source", place, f"is not CSV ({error}); correct or remove the line") from None
