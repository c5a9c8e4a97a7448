"""The command line of tools/setup_environments.py."""

from __future__ import annotations

import argparse
import sys

from sami_nemo.errors import EXIT_USER_ERROR, UserError
from tools.environments.install import ENVIRONMENTS, ROOT, Environment, StepFailed, lock_file, set_up
from tools.environments.interpreters import find_interpreter
from tools.environments.machine import check_machine

EXIT_STEP_FAILED = 1


def main(description: str | None) -> int:
    """Install what is missing. Returns the exit status."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "environments", nargs="*", default=[], help="train, generate, launcher; the first two if none is named"
    )
    parser.add_argument(
        "--accelerator",
        choices=("auto", "cpu", "gpu"),
        default="auto",
        help="gpu on a login node without GPUs whose compute nodes have them",
    )
    arguments = parser.parse_args()
    unknown = set(arguments.environments) - {*ENVIRONMENTS, "launcher"}
    if unknown:
        parser.error(f"unknown environment {sorted(unknown)[0]!r}; choose from {', '.join(ENVIRONMENTS)}, launcher")
    names = dict.fromkeys(arguments.environments or ENVIRONMENTS)
    environments = [Environment(name, lock_file(name, arguments.accelerator), ROOT) for name in names]
    try:
        install([environment for environment in environments if not environment.is_current()])
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    except StepFailed as failure:
        print(failure, file=sys.stderr)
        return EXIT_STEP_FAILED
    return 0


def install(environments: list[Environment]) -> None:
    """Install `environments` if this machine can have them all.

    Raises:
        UserError: it cannot; nothing has been written.
        StepFailed: a step of an installation failed.
    """
    if not environments:
        return
    names = [environment.name for environment in environments]
    check_machine(names, ROOT)
    interpreters = {name: find_interpreter(name) for name in names}
    # It needs a module that not every system has; this is one that has it.
    from sami_nemo.file_lock import held

    (ROOT / ".venv").mkdir(exist_ok=True)
    with held(ROOT / ".venv" / "setup.lock"):
        for environment in environments:
            set_up(environment, interpreters[environment.name])
