"""Find the environment, and hand over to sami_nemo/launch/main.py, which says what can be given: --help shows it."""

# No `from __future__ import annotations`: the system's Python, 3.6 on RHEL 8, has to get as far as the environment's.
import importlib.util
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A login node needs no more than the first; who trains on this machine has the second.
PYTHONS = [ROOT / ".venv" / name / "bin" / "python" for name in ("launcher", "train")]

if importlib.util.find_spec("hydra") is None:
    for python in PYTHONS:
        if python.exists() and Path(sys.executable) != python:
            os.execv(str(python), [str(python), *sys.argv])
    print("hydra-core = (not installed): run `make setup`, then .venv/train/bin/python", file=sys.stderr)
    sys.exit(2)
# The repository is found from any working directory.
sys.path.insert(0, str(ROOT))
main = importlib.import_module("sami_nemo.launch.main").main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
