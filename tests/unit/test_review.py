"""Outputs that people may edit: the run stops for them, takes them as they are, and redoes what follows from them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from sami_nemo.config.compose import compose
from sami_nemo.config.schema import Config
from sami_nemo.launch.console import PlainView
from sami_nemo.launch.local_runner import ReviewPending, run_stages
from sami_nemo.launch.stages import Stage
from sami_nemo.run_dir import RunDir

# Copies the text of its first argument, or of the file there, to the partial output.
COPY = (
    "import sys, pathlib; source, target = sys.argv[1:];"
    "path = pathlib.Path(source); text = path.read_text() if path.exists() else source;"
    "pathlib.Path(target + '.partial').write_text(text)"
)


def go(config: Config) -> tuple[str, list[str]]:
    """Run a writer and a reader of its file. Returns what was read, and what was printed."""
    run = RunDir(config.run_dir)
    written, copied = run.root / "written", run.root / "copied"
    stages = [
        Stage("write", "train", "", outputs=(written,), editable=True, review=config.principles.review),
        Stage("read", "train", "", inputs=("write",), outputs=(copied,)),
    ]
    sources = {"write": "draft", "read": str(written)}

    def command(stage: Stage, config: Config) -> list[str]:
        return [sys.executable, "-c", COPY, sources[stage.name], str(stage.outputs[0])]

    output = io.StringIO()
    run_stages(config, stages, PlainView(Console(file=output)), {}, command)
    return copied.read_text(), output.getvalue().splitlines()


def test_a_run_stops_for_review_and_goes_on_from_the_edited_file(tmp_path: Path) -> None:
    config = compose([f"runs_dir={tmp_path}", "principles.review=true"])
    with pytest.raises(ReviewPending, match="written for review") as pending:
        go(config)
    assert pending.value.path.read_text() == "draft"
    pending.value.path.write_text("edited")
    assert go(config) == (
        "edited",
        ["write: finished before", "read: starts", "read: finished in 0:00"],
    )
    assert go(config)[1] == ["write: finished before", "read: finished before"]


def test_a_later_edit_redoes_what_follows(tmp_path: Path) -> None:
    config = compose([f"runs_dir={tmp_path}"])
    assert go(config)[0] == "draft"
    (config.run_dir / "written").write_text("edited later")
    text, lines = go(config)
    assert text == "edited later" and "read: starts" in lines


def test_whether_to_review_is_no_other_run(tmp_path: Path) -> None:
    with pytest.raises(ReviewPending):
        go(compose([f"runs_dir={tmp_path}", "principles.review=true"]))
    assert go(compose([f"runs_dir={tmp_path}"]))[0] == "draft"
    assert "review: false" in (tmp_path / "sami_smol" / "config.yaml").read_text()
