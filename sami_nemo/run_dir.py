"""Every path of a run, and how files get there.

A stage writes into `<output>.partial`, renames each output to its final place, and writes its manifest
last; a stage without a matching manifest is not finished. Layout:

    runs/<name>/config.yaml                   the resolved configuration
    runs/<name>/metrics.json                  results of every iteration
    runs/<name>/manifests/<stage>.json        what a finished stage made, with hashes
    runs/<name>/logs/<stage>.log              everything a stage printed
    runs/<name>/logs/<stage>.events.jsonl     its progress, see progress.py
    runs/<name>/jobs/<stage>.sh               its Slurm job, see launch/slurm/; jobs.json holds the job ids
    runs/<name>/principles.yaml               what constitutions are drawn from; with principles.review=true to edit
    runs/<name>/principles_writer.json        what the principle writer was asked and answered, if there is one
    runs/<name>/judge_cache/                  replies of the judge, by hash of what it was asked
    runs/<name>/report/index.html             the run in figures, see report/
    runs/<name>/queries/                      evaluation.jsonl, half_0.jsonl, half_1.jsonl, constitutions.json
    runs/<name>/iteration_<n>/train/          checkpoints while training, then its record
    runs/<name>/iteration_<n>/hf/             the model of iteration n as a Hugging Face checkpoint; of iteration 0 the base
                                              model, with links to its weights
    runs/<name>/iteration_<n>/responses/      what the model of iteration n answered
    runs/<name>/iteration_<n>/engine_<k>/     what engine k of several answered, before it is put together
    runs/<name>/iteration_<n>/groups/         contrast groups built from those responses
    runs/<name>/iteration_<n>/evaluation/     bound and lengths of the model of iteration n
    runs/<name>/iteration_<n>/judge/          comparisons of its responses with those of the baselines
    runs/<name>/instruct/                     the same of the instruct baseline: hf, responses, groups, evaluation
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sami_nemo.errors import storage_error

# In the place of an iteration: the instruct baseline, which answers and is evaluated like an iteration's model.
INSTRUCT = -1


@dataclass(frozen=True)
class RunDir:
    """Paths below the directory of one run."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.json"

    @property
    def queries(self) -> Path:
        return self.root / "queries"

    @property
    def principles(self) -> Path:
        return self.root / "principles.yaml"

    @property
    def principles_writer(self) -> Path:
        return self.root / "principles_writer.json"

    @property
    def judge_cache(self) -> Path:
        return self.root / "judge_cache"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def manifest(self, stage: str) -> Path:
        return self.root / "manifests" / f"{stage}.json"

    def manifests(self) -> list[dict[str, Any]]:
        """Of all finished stages, in the order in which they ended."""
        # A dot is in the names of other files, `<stage>.attempt.json`: jobs beside this one remove theirs at any time.
        paths = [path for path in self.manifest("x").parent.glob("*.json") if "." not in path.stem]
        # Those that ended within a second, which is all that a manifest tells, are told apart by its file.
        paths.sort(key=lambda path: path.stat().st_mtime_ns)
        return sorted(map(read_json, paths), key=lambda manifest: manifest["finished"])

    def log(self, stage: str) -> Path:
        return self.root / "logs" / f"{stage}.log"

    def events(self, stage: str) -> Path:
        return self.root / "logs" / f"{stage}.events.jsonl"

    @property
    def jobs(self) -> Path:
        return self.root / "jobs"

    def job_log(self, job: str) -> Path:
        return self.root / "logs" / f"{job}.slurm.log"

    def iteration(self, n: int) -> Path:
        return self.root / ("instruct" if n == INSTRUCT else f"iteration_{n}")

    def train(self, n: int) -> Path:
        return self.iteration(n) / "train"

    def hf(self, n: int) -> Path:
        return self.iteration(n) / "hf"

    def responses(self, n: int) -> Path:
        return self.iteration(n) / "responses"

    def engine_responses(self, n: int, engine: int) -> Path:
        return self.iteration(n) / f"engine_{engine}"

    def groups(self, n: int) -> Path:
        return self.iteration(n) / "groups"

    def evaluation(self, n: int) -> Path:
        return self.iteration(n) / "evaluation"

    def judge(self, n: int) -> Path:
        return self.iteration(n) / "judge"


def partial(path: Path) -> Path:
    """Where `path` is written before it is whole."""
    return path.with_name(path.name + ".partial")


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_writer(path: Path, binary: bool = False) -> Iterator[IO[Any]]:
    """A file, of text unless `binary`, that appears at `path` whole, or not at all.

    Raises:
        StorageError: the disk is full, over quota or read-only.
    """
    temporary = partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") if binary else temporary.open("w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)
        refused = storage_error(error, path) if isinstance(error, OSError) else None
        if refused is None:
            raise
        raise refused from None


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically."""
    with atomic_writer(path) as file:
        file.write(text)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` atomically."""
    with atomic_writer(path, binary=True) as file:
        file.write(content)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line, atomically."""
    with atomic_writer(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def commit(final: Path) -> None:
    """Move the finished `<final>.partial` to `final`, durably; what stood there before is removed."""
    if final.is_dir():
        shutil.rmtree(final)
    partial(final).replace(final)
    fsync_directory(final.parent)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
