"""Make a small Mistral, Mixtral or Llama checkpoint with random weights and its own tokenizer. Downloads nothing.

.venv/train/bin/python tools/make_random_model.py --output models/tiny-random [--architecture mixtral --num-experts 4]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sami_nemo.base_model import random_model, sealed
from sami_nemo.base_model.prepare import MODEL_SEED
from sami_nemo.errors import EXIT_USER_ERROR, UserError
from sami_nemo.geometry import ARCHITECTURES


def main() -> int:
    # What is not given is left to `random_model.geometry`.
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("--output", type=Path, required=True, help="directory to make")
    parser.add_argument("--architecture", choices=ARCHITECTURES)
    for size in ("num-layers", "hidden-size", "num-attention-heads", "num-key-value-heads", "vocab-size"):
        parser.add_argument(f"--{size}", type=int)
    parser.add_argument("--num-experts", type=int, help="of a Mixtral")
    parser.add_argument("--seed", type=int, default=MODEL_SEED)
    sizes = vars(parser.parse_args())
    output, seed = sizes.pop("output"), sizes.pop("seed")
    if (sizes.get("architecture") == "mixtral") != ("num_experts" in sizes):
        parser.error("--num-experts goes with --architecture mixtral")
    geometry = random_model.geometry(**sizes)
    try:
        sealed.place(output, lambda directory: random_model.build(directory, geometry, seed))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER_ERROR
    print(output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
