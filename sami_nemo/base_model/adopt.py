"""Other people's checkpoints in the one form that a run reads: by transformers 4 and 5 and by vLLM, to the same function.

The weights stay where they are. What a run gets is links to them, an index of the tensors that are the model's, and
config.json and tokenizer in a plain form. What else lies beside a checkpoint is left out.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

from sami_nemo.base_model.tokenizer import write_tokenizer
from sami_nemo.checkpoint.headers import INDEX, TORCH_NAMES, TensorInfo, check_weights
from sami_nemo.config_json import FILE, plain_config, read_config, read_geometry, read_json_file, unread_keys
from sami_nemo.geometry import Geometry
from sami_nemo.run_dir import write_json

GENERATION_CONFIG = "generation_config.json"
# Its front matter tells the license, which the models that come of it are under.
CARD = "README.md"


def adopt(checkpoint: Path, directory: Path, source: str) -> Geometry:
    """Put the checkpoint into `directory`, which is empty.

    Args:
        source: the configuration key that `checkpoint` comes from, for errors.

    Raises:
        CheckpointError: it is not whole, or is none that can be trained.
    """
    geometry = read_geometry(checkpoint, source)
    tensors = check_weights(checkpoint, geometry, source)
    values = read_config(checkpoint, source)
    if unread := unread_keys(values):
        print(f"{checkpoint / FILE}: ignored, because no class of this architecture reads it: {', '.join(unread)}")
    for file in sorted({info.file for info in tensors.values()}):
        (directory / file).symlink_to((checkpoint / file).absolute())
    sizes = {"total_size": sum(info.nbytes for info in tensors.values())}
    write_json(
        directory / INDEX, {"metadata": sizes, "weight_map": {name: info.file for name, info in tensors.items()}}
    )
    write_json(directory / FILE, plain_config(values, geometry, _dtype(tensors)))
    if (checkpoint / GENERATION_CONFIG).is_file():
        generation = read_json_file(checkpoint / GENERATION_CONFIG, checkpoint, source)
        write_json(directory / GENERATION_CONFIG, generation)
    if (checkpoint / CARD).is_file():
        shutil.copyfile(checkpoint / CARD, directory / CARD)
    write_tokenizer(checkpoint, directory, source)
    return geometry


def _dtype(tensors: dict[str, TensorInfo]) -> str:
    """What most of the weights are stored in, as torch calls it. A few may be kept in another type, norms for instance."""
    held: Counter[str] = Counter()
    for info in tensors.values():
        held[info.dtype] += info.nbytes
    return TORCH_NAMES[held.most_common(1)[0][0]]
