"""What a job's container sees: every file that the job reads, at the place where its configuration and links have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from sami_nemo.config.compose import compose
from sami_nemo.launch.slurm.mounts import mounts_of, places_of
from sami_nemo.launch.slurm.script import job_settings, jobs_of
from sami_nemo.launch.stages import ROOT, plan

IMAGES = ("cluster.train_image=/images/train.sqsh", "cluster.generate_image=/images/generate.sqsh")


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory beside other places, and a hub's cache of its own."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    (tmp_path / "hf").mkdir()
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path


def mounts(*words: str) -> set[Path]:
    """The directories outside of the repository and the desk that the first stage's container sees."""
    config = compose(["recipe=sami_mistral", "cluster=slurm", *IMAGES, *words])
    pairs = [mount.split(":") for mount in mounts_of(config, job_settings(config, plan(config)[0]))]
    assert all(source == target for source, target in pairs)
    return {Path(source) for source, _ in pairs} - {ROOT, Path.cwd()}


def write_model(directory: Path) -> Path:
    directory.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (directory / name).touch()
    return directory


def test_every_kind_of_input(desk: Path) -> None:
    for name in ("base", "instruct", "writer"):
        write_model(desk / "models" / name)
    for name in ("principles/own.yaml", "data/a.jsonl", "data/b.jsonl"):
        (desk / name).parent.mkdir(exist_ok=True)
        (desk / name).touch()
    words = [
        f"model.path={desk}/models/base",
        f"evaluate.instruct={desk}/models/instruct",
        f"data.source='{desk}/data/*'",
    ]
    expected = {desk / place for place in ("models/base", "models/instruct", "data", "hf")}
    assert mounts(*words) - {desk / "principles"} == expected
    assert mounts(*words, f"principles.file={desk}/principles/own.yaml") == expected | {desk / "principles"}
    writer = ("principles=local_writer", f"principles.model={desk}/models/writer")
    assert mounts(*words, *writer) == expected | {desk / "models/writer"}
    # Of an endpoint it is no directory, whatever is here.
    other = ("principles=endpoint_writer", f"principles.model={desk}/models/writer")
    assert mounts(*words, *other) == expected


def test_links_are_followed(desk: Path) -> None:
    """A model that is a link to a directory, whose files are links to yet another."""
    snapshot, blobs, elsewhere = (desk / name for name in ("cache/snapshots/abc", "cache/blobs", "weights"))
    for place in (snapshot, blobs, elsewhere, desk / "links", desk / "more"):
        place.mkdir(parents=True)
    (blobs / "1").touch()
    (elsewhere / "2").touch()
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "model.safetensors").symlink_to(desk / "more" / "second")
    (desk / "more" / "second").symlink_to(elsewhere / "2")
    (desk / "links" / "current").symlink_to(desk / "cache" / "snapshots" / "abc")
    expected = {desk / place for place in ("links", "cache/snapshots/abc", "cache/blobs", "more", "weights", "hf")}
    assert mounts(f"model.path={desk}/links/current") == expected
    # By way of a directory that is a link itself.
    (desk / "desk" / "models").symlink_to(desk / "links")
    assert mounts("model.path=models/current") == expected
    # Nor does it matter what it is an input for.
    (desk / "desk" / "own.jsonl").symlink_to(elsewhere / "2")
    (desk / "desk" / "own.yaml").symlink_to(blobs / "1")
    assert mounts("data.source=own.jsonl", "principles.file=own.yaml") == {
        desk / place for place in ("weights", "cache/blobs", "hf")
    }


def test_links_in_a_circle_or_to_nowhere_end(desk: Path) -> None:
    model = write_model(desk / "model")
    (model / "a").symlink_to("b")
    (model / "b").symlink_to("a")
    (model / "self").symlink_to("self/below")
    (model / "nowhere").symlink_to("/not/there")
    (model / "up").symlink_to("..")
    assert set(places_of(model)) == {model, desk}
    assert places_of(desk / "nothing") == []


def test_directories_below_the_root_are_left_to_the_image() -> None:
    assert places_of(Path("/etc/hostname")) == [Path("/etc/hostname")]


def test_jobs_are_told_where_the_cache_is(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(*words: str) -> str:
        config = compose(["recipe=sami_mistral", "cluster=slurm", *IMAGES, *words])
        return {job.name: job for job in jobs_of(config, plan(config))}["train_1"].script

    assert f"export HF_HOME={desk}/hf\nexport HF_HUB_CACHE={desk}/hf/hub\n" in script()
    monkeypatch.setenv("HOME", str(desk))
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert f"export HF_HOME={desk}/hf\nexport HF_HUB_CACHE={desk}/hf/hub\n" in script()
    (desk / "older").mkdir()
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", str(desk / "older"))
    assert f"export HF_HUB_CACHE={desk}/older\n" in script() and f"{desk}/older:{desk}/older" in script()
    monkeypatch.delenv("HUGGINGFACE_HUB_CACHE")
    # What the cluster's file says goes before what the launcher's shell says.
    (desk / "shared").mkdir()
    own = script(f"cluster.default.environment.HF_HOME={desk}/shared")
    assert f"export HF_HOME={desk}/shared\nexport HF_HUB_CACHE={desk}/shared/hub\n" in own
    assert f"{desk}/shared:{desk}/shared" in own and f"{desk}/hf" not in own


def test_a_cache_that_is_a_link_is_followed(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk / "home").mkdir()
    (desk / "scratch" / "hf").mkdir(parents=True)
    (desk / "home" / "hf").symlink_to(desk / "scratch" / "hf")
    monkeypatch.setenv("HF_HOME", str(desk / "home" / "hf"))
    assert mounts() == {desk / "home", desk / "scratch" / "hf"}


def test_what_is_yet_to_be_made_outlasts_the_container(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(desk / "not yet" / "hf"))
    (desk / "big").mkdir()
    (desk / "desk" / "runs").symlink_to(desk / "big")
    assert mounts() == {desk}
    monkeypatch.setenv("HF_HOME", str(desk / "hf"))
    assert mounts() == {desk / "hf", desk / "big"}
