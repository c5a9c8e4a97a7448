"""Whose a run's directory is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.errors import RunDirectoryError
from sami_nemo.launch.claim import check_unchanged, open_run
from sami_nemo.launch.manifests import config_sha256
from sami_nemo.run_dir import RunDir


def test_a_changed_configuration_is_refused_with_its_keys(tmp_path: Path) -> None:
    words = ["recipe=sami_debug", f"runs_dir={tmp_path}", "name=mine"]
    with open_run(compose(words)):
        pass
    check_unchanged(compose(words))
    with pytest.raises(RunDirectoryError) as refused:
        check_unchanged(compose([*words, "train.lr=0.5", "seed=3"]))
    line = str(refused.value)
    assert "seed was 0, is 3; train.lr was 0.001, is 0.5" in line and "name=" in line and "\n" not in line
    assert line.count(" was ") == 2


def test_a_run_that_began_before_a_shipped_file_moved_goes_on(tmp_path: Path) -> None:
    words = ["recipe=sami_debug", f"runs_dir={tmp_path}", "name=mine"]
    with open_run(compose(words)) as run:
        stored = run.config.read_text()
        before = config_sha256(run)
    run.config.write_text(stored.replace("sami_nemo/queries/sample", "sami_nemo/data/sample"))
    assert run.config.read_text() != stored
    # Its manifests name this hash, before and after the file is written anew.
    assert config_sha256(run) == before
    with open_run(compose(words)):
        assert run.config.read_text() == stored and config_sha256(run) == before


def test_the_parameters_of_requests_may_be_mended(tmp_path: Path) -> None:
    """A parameter that the judge refuses is found after hours of training. Runs of older versions name none."""
    words = ["recipe=sami_debug", f"runs_dir={tmp_path}", "name=mine"]
    with open_run(compose(words)) as run:
        before = config_sha256(run)
        stored = run.config.read_text()
        run.config.write_text("".join(line for line in stored.splitlines(keepends=True) if "request: {}" not in line))
        assert run.config.read_text() != stored and config_sha256(run) == before
    mended = "judge.request={chat_template_kwargs: {enable_thinking: false}, temperature: null}"
    with open_run(compose([*words, mended, "principles.request={top_k: 1}"])):
        assert "enable_thinking: false" in run.config.read_text() and config_sha256(run) == before


def test_a_foreign_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with (
        pytest.raises(RunDirectoryError, match=r"thesis\.tex"),
        open_run(compose(["recipe=sami_debug", f"runs_dir={tmp_path}", "name=mine"])),
    ):
        pass


@pytest.mark.parametrize("text", ["", ": [bad", "- a list", "\xff"])
def test_a_damaged_configuration_is_one_line(text: str, tmp_path: Path) -> None:
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path}", "name=mine"])
    config.run_dir.mkdir()
    RunDir(config.run_dir).config.write_bytes(text.encode("latin-1"))
    with pytest.raises(RunDirectoryError, match=r"config\.yaml = .*: not a configuration"):
        check_unchanged(config)


@pytest.mark.parametrize("obstacle", ["runs", "runs/mine"])
def test_a_file_in_place_of_the_directory_is_one_line(obstacle: str, tmp_path: Path) -> None:
    (tmp_path / obstacle).parent.mkdir(exist_ok=True)
    (tmp_path / obstacle).write_text("…")
    config = compose(["recipe=sami_debug", f"runs_dir={tmp_path / 'runs'}", "name=mine"])
    with pytest.raises(RunDirectoryError, match="cannot be made or written"), open_run(config):
        pass
