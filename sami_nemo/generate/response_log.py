"""Responses on disk while they are sampled: a file that grows by whole chunks and survives kill -9."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from sami_nemo.records import Response
from sami_nemo.run_dir import fsync_directory


class ResponseLog:
    """Appends chunks of responses.

    Chunks end at fixed numbers of responses, so that a resumed stage batches the same requests together as an
    undisturbed one. A chunk that was being written when the process died is cut off.

    Args:
        path: a JSONL file, made if it is not there.
        chunk: responses of a chunk; the last one may be shorter.
        total: responses of the whole file.
    """

    def __init__(self, path: Path, chunk: int, total: int) -> None:
        self._path = path
        self._chunk = chunk
        self._total = total
        if not path.exists():
            path.touch()
            fsync_directory(path.parent)
        self.done = self._cut_torn_chunk()
        """Responses that are safely in the file."""

    def next_chunk(self) -> range:
        """Indices of the next responses to append; empty at the end."""
        return range(self.done, min(self.done + self._chunk, self._total))

    def append(self, responses: Sequence[Response]) -> None:
        """Write the next chunk through to the disk."""
        assert len(responses) == len(self.next_chunk())
        lines = (json.dumps(response.to_json(), ensure_ascii=False, allow_nan=False) + "\n" for response in responses)
        with self._path.open("ab") as file:
            file.write("".join(lines).encode())
            file.flush()
            os.fsync(file.fileno())
        self.done += len(responses)

    def _cut_torn_chunk(self) -> int:
        whole_lines = self._path.read_bytes().split(b"\n")[:-1]
        lines = len(whole_lines)
        assert lines <= self._total
        keep = lines if lines == self._total else lines - lines % self._chunk
        with self._path.open("r+b") as file:
            file.truncate(sum(len(line) + 1 for line in whole_lines[:keep]))
            os.fsync(file.fileno())
        return keep
