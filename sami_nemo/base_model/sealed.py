"""Model directories that this project makes: they appear whole and with the hashes of their files, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from sami_nemo.errors import CheckpointError
from sami_nemo.file_lock import held
from sami_nemo.run_dir import commit, fsync_directory, partial, read_json, sha256_file, write_json

MANIFEST = "manifest.json"
LOCK = ".sami_nemo.lock"


def place(target: Path, build: Callable[[Path], None]) -> bool:
    """Make `target` by letting `build` fill an empty directory, unless a sound one is there.

    Returns:
        Whether it was built; an existing directory whose files match its manifest is left alone.

    Raises:
        CheckpointError: `target` exists and is damaged, or was not made by this function.
    """
    # It appears whole, so one that is there needs no lock, and its directory may be read-only.
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        # Against other processes that make models here: two runs may start at once.
        with held(target.parent / LOCK):
            if not target.exists():
                _make(target, build)
                return True
    verify(target)
    return False


def _make(target: Path, build: Callable[[Path], None]) -> None:
    unfinished = partial(target)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        build(unfinished)
        _seal(unfinished)
        commit(target)
    except BaseException:
        # Where it did not fit, it would take the room that is missing.
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def verify(directory: Path, contents: bool = True) -> None:
    """Compare a directory with its manifest.

    Args:
        contents: false compares sizes only, which takes no time.

    Raises:
        CheckpointError: no manifest, or a file is missing or has other bytes.
    """
    manifest = directory / MANIFEST
    remedy = "delete the directory and run again; or, if it is your own checkpoint, set model.prepare=none"
    if not manifest.is_file():
        raise CheckpointError("model.path", directory, f"exists, and not as made here (no manifest.json); {remedy}")
    for name, expected in read_json(manifest)["files"].items():
        file = directory / name
        if not file.is_file():
            raise CheckpointError(str(file), "(missing)", remedy)
        if file.stat().st_size != expected["bytes"] or (contents and sha256_file(file) != expected["sha256"]):
            raise CheckpointError(str(file), "(bytes differ from manifest.json)", remedy)


def _seal(directory: Path) -> None:
    """Write every file through to the disk, then the manifest that names them."""
    files = sorted(path for path in directory.iterdir() if path.is_file())
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
    fsync_directory(directory)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)} for path in files}
    write_json(directory / MANIFEST, {"files": entries})
