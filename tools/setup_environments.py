"""Create .venv/train and .venv/generate from the lock files. Any Python since 3.8 can run this.

    python3 tools/setup_environments.py [train] [generate] [launcher] [--accelerator auto|cpu|gpu]

`launcher` is for a login node whose stages run in containers: a few small packages, in the versions of the training
lock, and no torch.

The environments need Python 3.11 or 3.12, the launcher's also takes 3.13: the Python that runs this, another one on the
path, or one that uv has or fetches. An environment that is up to date with its lock is left alone, whichever of them it
has; any other is made anew. What pip says goes to .venv/<environment>.log and is shown only when a step fails.
"""

import sys

# This file alone has to be understood by older Pythons: python3 is 3.6 on RHEL 8.
if sys.version_info < (3, 8):
    found = ".".join(str(part) for part in sys.version_info[:3])
    sys.stderr.write("Python = " + found + ": too old; run this with python3.11 or python3.12\n")
    sys.exit(2)

from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.environments.command import main

if __name__ == "__main__":
    sys.exit(main(__doc__))
