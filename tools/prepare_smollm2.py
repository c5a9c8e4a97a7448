"""Make SmolLM2-135M-Instruct, the default base model, into a Hugging Face Mistral (or upcycled Mixtral) checkpoint.

.venv/train/bin/python tools/prepare_smollm2.py [--output models/smollm2-135m] [--experts 4]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sami_nemo.base_model.prepare import prepare_smollm2
from sami_nemo.errors import EXIT_USER_ERROR, UserError


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="directory to make (default: models/smollm2-135m[-moeN])")
    parser.add_argument("--experts", type=int, help="upcycle to a Mixtral with this many experts")
    arguments = parser.parse_args()
    suffix = f"-moe{arguments.experts}" if arguments.experts else ""
    output = arguments.output or Path(f"models/smollm2-135m{suffix}")
    try:
        prepare_smollm2(output, arguments.experts)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
