"""Fixtures that several test modules share: models, real data, the Pythons of both environments."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    # A shell ignores Ctrl-C in what it starts in the background, and programs inherit that: launchers that tests
    # interrupt would go on for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Minutes of each part of the tests, by first folder; what several tests share counts where it was first needed."""
    seconds: dict[str, float] = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        if isinstance(report, pytest.TestReport):
            part = Path(report.nodeid).parts[1]
            seconds[part] = seconds.get(part, 0) + report.duration
    if seconds:
        terminalreporter.section("minutes")
        for part, spent in sorted(seconds.items()):
            terminalreporter.line(f"{spent / 60:6.1f}  {part}")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets beside the checkout; tests that read them are skipped where there are none."""
    directory = ROOT.parent / "shared" / "data"
    if not directory.is_dir():
        pytest.skip(f"no real data in {directory}")
    return directory


@pytest.fixture(scope="session")
def generate_python() -> Path:
    """The Python of the generation environment (vLLM, transformers 5)."""
    python = ROOT / ".venv" / "generate" / "bin" / "python"
    if not python.exists():
        pytest.skip("no generation environment; run tools/setup_environments.py")
    return python


@pytest.fixture(scope="session")
def tiny_mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral checkpoint: 2 layers, hidden 128, 4 heads, 2 key-value heads, vocabulary 1,024. Read only."""
    from sami_nemo.base_model import random_model

    directory = tmp_path_factory.mktemp("tiny") / "mistral"
    directory.mkdir()
    random_model.build(directory, random_model.geometry(), seed=0)
    return directory


@pytest.fixture(scope="session")
def tiny_mixtral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same geometry as a Mixtral with 4 random experts, 2 per token. Read only."""
    from sami_nemo.base_model import random_model

    directory = tmp_path_factory.mktemp("tiny") / "mixtral"
    directory.mkdir()
    random_model.build(directory, random_model.geometry(architecture="mixtral", num_experts=4), seed=0)
    return directory


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct where `make run` keeps it; fetched and converted once (30 s). Read only."""
    from sami_nemo.base_model.prepare import prepare_smollm2

    directory = ROOT / "models" / "smollm2-135m"
    prepare_smollm2(directory, num_experts=None)
    return directory
