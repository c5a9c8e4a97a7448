"""The two-node Slurm that the tests of this folder share."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from tests.slurm.two_nodes import TwoNodes, missing_programs

PACKAGES = ("slurm-wlm", "munge", "shellcheck")


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    """A running cluster. In a container, where tests are root, its packages are installed if they are missing."""
    if missing_programs() and os.getuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]):
            subprocess.run(command, env=environment, capture_output=True, timeout=600, check=False)
    if missing := missing_programs():
        pytest.skip(f"no {', '.join(missing)}: install {' and '.join(PACKAGES[:2])}")
    with TwoNodes(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster
