"""Which stages are finished, and what an unfinished one may go on from.

Two small files tell. `manifests/<stage>.attempt.json` is written before a stage starts and says what it is made from;
what lies in its `.partial` outputs belongs to that attempt. `manifests/<stage>.json` is written last, when the outputs
are in their places. So whatever the moment of a kill, one of these holds:

    manifest matches, outputs as it says                  finished
    the same, outputs edited that people may edit         finished, to be recorded anew
    attempt matches and says that the stage ended well    only renames are missing
    attempt matches                                       the stage goes on in its `.partial` outputs
    anything else                                         the stage starts over, with empty hands
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path
from typing import Any

import yaml

from sami_nemo.config.files import settings_of_results
from sami_nemo.launch.stage_log import phases
from sami_nemo.launch.stages import Stage
from sami_nemo.run_dir import RunDir, commit, partial, read_json, sha256_file, write_json


class State(Enum):
    FINISHED = auto()
    EDITED = auto()
    TO_COMMIT = auto()
    INTERRUPTED = auto()
    TO_START = auto()


def attempt_path(run: RunDir, stage: Stage) -> Path:
    return run.manifest(f"{stage.name}.attempt")


def made_from(run: RunDir, stage: Stage) -> dict[str, Any]:
    """What the outputs depend on: the configuration and the manifests of the stages before."""
    return {
        "config_sha256": config_sha256(run),
        "inputs": {name: _digest(run.manifest(name)) for name in stage.inputs},
    }


def config_sha256(run: RunDir) -> str:
    """Of the settings that results depend on."""
    content = settings_of_results(yaml.safe_load(run.config.read_text(encoding="utf-8")))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest(manifest: Path) -> str:
    """Of what a stage made and what from, not of when: redone with the same result, nothing after it is redone."""
    record = read_json(manifest)
    content = {name: file["sha256"] for name, file in record["outputs"].items()}
    return hashlib.sha256(json.dumps([record["made_from"], content], sort_keys=True).encode()).hexdigest()


def inspect(run: RunDir, stage: Stage) -> State:
    """Where a stage stands. The stages before it must be finished."""
    current = made_from(run, stage)
    manifest = _read(run.manifest(stage.name))
    if manifest.get("made_from") == current and _as_recorded(run, stage, manifest["outputs"]):
        return State.FINISHED
    if stage.editable and manifest.get("made_from") == current and all(path.exists() for path in stage.outputs):
        return State.EDITED
    attempt = _read(attempt_path(run, stage))
    if attempt.get("made_from") != current or run.manifest(stage.name).exists():
        return State.TO_START
    whole = all(path.exists() or partial(path).exists() for path in stage.outputs)
    return State.TO_COMMIT if "wall_seconds" in attempt and whole else State.INTERRUPTED


def start_over(run: RunDir, stage: Stage) -> None:
    """Remove whatever earlier attempts left. The manifest goes first: it must not outlive what it describes."""
    run.manifest(stage.name).unlink(missing_ok=True)
    attempt_path(run, stage).unlink(missing_ok=True)
    for path in stage.outputs:
        _remove(path)
        _remove(partial(path))


def settle(run: RunDir, stage: Stage) -> bool:
    """Do what is left of a stage that needs no process. Returns whether it is finished now."""
    state = inspect(run, stage)
    if state is State.EDITED:
        adopt(run, stage)
    if state is State.TO_COMMIT:
        complete(run, stage)
    return state in (State.FINISHED, State.EDITED, State.TO_COMMIT)


def begin(run: RunDir, stage: Stage, job: str | None = None) -> bool:
    """Note what the attempt that starts now is made from, and where its log starts; give an interrupted one its outputs
    back, and any other empty hands.

    Args:
        job: of Slurm, whose earlier failures still count.

    Returns:
        Whether it goes on from an interrupted attempt.
    """
    resumed = inspect(run, stage) is State.INTERRUPTED
    if not resumed:
        start_over(run, stage)
    for path in stage.outputs:
        if path.exists():
            _remove(partial(path))
            path.rename(partial(path))
    if job is None or read_failure(run, stage).get("job") != job:
        failure_path(run, stage).unlink(missing_ok=True)
    starts = {"log": _size(run.log(stage.name)), "events": _size(run.events(stage.name))}
    write_json(attempt_path(run, stage), {"made_from": made_from(run, stage), **starts})
    return resumed


def log_starts(run: RunDir, stage: Stage) -> tuple[int, int]:
    """Bytes of the log and of the events that earlier attempts have left."""
    attempt = _read(attempt_path(run, stage))
    return attempt.get("log", 0), attempt.get("events", 0)


def record_failure(run: RunDir, stage: Stage, message: str, job: str | None = None, failures: int = 1) -> None:
    """Note how an attempt failed, for people who ask later.

    Args:
        job: of Slurm.
        failures: of this job, with this one.
    """
    write_json(failure_path(run, stage), {"job": job, "failures": failures, "message": message})


def read_failure(run: RunDir, stage: Stage) -> dict[str, Any]:
    """How the latest attempt failed, as `record_failure` wrote it; empty if it did not."""
    return _read(failure_path(run, stage))


def failure_path(run: RunDir, stage: Stage) -> Path:
    return run.manifest(f"{stage.name}.failure")


def finish(
    run: RunDir, stage: Stage, wall_seconds: float, versions: dict[str, str], ended: float | None = None
) -> dict[str, float]:
    """Record that the stage ended well, then put its outputs in place and write its manifest.

    Args:
        ended: when its process did, seconds since the epoch; just now if not given.

    Returns:
        How the wall time splits, see `stage_log.phases`.
    """
    ended = time.time() if ended is None else ended
    split = phases(run.events(stage.name), log_starts(run, stage)[1], ended - wall_seconds, ended)
    record = {
        "made_from": made_from(run, stage),
        "wall_seconds": round(wall_seconds, 1),
        "phases": split,
        "versions": versions,
    }
    write_json(attempt_path(run, stage), record)
    complete(run, stage)
    return split


def complete(run: RunDir, stage: Stage) -> None:
    """The renames and the manifest of a stage that ended well."""
    record = read_json(attempt_path(run, stage))
    for path in stage.outputs:
        if partial(path).exists():
            commit(path)
    outputs = {_name(run, file): _describe(file) for file in _files(stage)}
    finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    write_json(run.manifest(stage.name), {"stage": stage.name, **record, "finished": finished, "outputs": outputs})
    attempt_path(run, stage).unlink()
    failure_path(run, stage).unlink(missing_ok=True)


def adopt(run: RunDir, stage: Stage) -> None:
    """Take the outputs as a person has edited them: the stages after it see new hashes and start over."""
    record = read_json(run.manifest(stage.name))
    record["outputs"] = {_name(run, file): _describe(file) for file in _files(stage)}
    write_json(run.manifest(stage.name), record)


def _read(path: Path) -> dict[str, Any]:
    """A missing or damaged file says nothing."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _files(stage: Stage) -> Iterator[Path]:
    for path in stage.outputs:
        yield from (file for file in sorted(path.rglob("*")) if file.is_file()) if path.is_dir() else (path,)


def _name(run: RunDir, file: Path) -> str:
    """Relative to the run, so that a run's directory can be moved."""
    return str(file.relative_to(run.root)) if file.is_relative_to(run.root) else str(file)


def _describe(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": sha256_file(file)}


def _as_recorded(run: RunDir, stage: Stage, outputs: dict[str, dict[str, Any]]) -> bool:
    """Whether the files are those of the manifest.

    A file with the recorded size and time is taken as unchanged, as git and make do: hashing every checkpoint of a
    large run would hold up each resumption by minutes. A copied run has other times, and is hashed.
    """
    found = {_name(run, file): file for file in _files(stage)}
    if found.keys() != outputs.keys():
        return False
    for name, file in found.items():
        if not file.exists():
            return False
        status, recorded = file.stat(), outputs[name]
        if status.st_size != recorded["size"]:
            return False
        if status.st_mtime_ns != recorded["mtime_ns"] and sha256_file(file) != recorded["sha256"]:
            return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
