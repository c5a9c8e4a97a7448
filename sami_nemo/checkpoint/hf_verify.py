"""Checks of an exported Hugging Face checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig

from sami_nemo.checkpoint.headers import read_headers
from sami_nemo.checkpoint.safetensors_io import DTYPE_NAMES, open_slices
from sami_nemo.errors import CheckpointError


def verify_export(directory: Path, base: Path, dtype: torch.dtype) -> None:
    """Compare names and shapes of the tensors in `directory` with those of `base`, and their type with `dtype`.

    Args:
        dtype: that the model was trained in; config.json must state it too, since vLLM and transformers load in what
            it says.

    Raises:
        CheckpointError: the first difference.
    """
    exported, expected = read_headers(directory), read_headers(base)
    if exported.keys() != expected.keys():
        odd = ", ".join(sorted(exported.keys() ^ expected.keys())[:3])
        raise CheckpointError("export", directory, f"has other tensors than {base} ({odd}, …)")
    for name, info in expected.items():
        if (exported[name].shape, exported[name].dtype) != (info.shape, DTYPE_NAMES[dtype]):
            found = f"{name} as {exported[name].dtype} {exported[name].shape}"
            raise CheckpointError("export", directory, f"holds {found}, not {DTYPE_NAMES[dtype]} {info.shape}")
    stated = AutoConfig.from_pretrained(directory).dtype
    if stated != dtype:
        raise CheckpointError("export", directory, f"has a config.json that says {stated}, with weights in {dtype}")


def hf_logits(checkpoint: Path, tokens_BS: Tensor, dtype: torch.dtype) -> Tensor:
    """Logits `[B, S, V]` by transformers on the CPU, with one decoder layer in memory at a time.

    Args:
        checkpoint: a Mistral or Mixtral directory.
        tokens_BS: sequences without padding, shorter than the attention window.
        dtype: of weights and computation.
    """
    from transformers import AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=dtype).eval()
    trunk = model.model
    rotary = type(trunk.rotary_emb)(config)
    length = tokens_BS.shape[1]
    positions_1S = torch.arange(length)[None]
    causal_11SS = torch.full((length, length), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]
    with open_slices(checkpoint) as slices, torch.no_grad():

        def fill(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
            names = dict(module.named_parameters())
            tensors = {name: slices(f"{prefix}.{name}")[:].to(dtype) for name in names}
            module.load_state_dict(tensors, assign=True)
            return module

        hidden_BSH = fill(trunk.embed_tokens, "model.embed_tokens")(tokens_BS)
        rotation = rotary(hidden_BSH, positions_1S)
        for number in range(config.num_hidden_layers):
            layer = fill(trunk.layers[number], f"model.layers.{number}")
            output = layer(
                hidden_BSH, attention_mask=causal_11SS, position_ids=positions_1S, position_embeddings=rotation
            )
            hidden_BSH = output[0] if isinstance(output, tuple) else output
            layer.to("meta")
        hidden_BSH = fill(trunk.norm, "model.norm")(hidden_BSH)
        head = "model.embed_tokens" if config.tie_word_embeddings else "lm_head"
        logits_BSV: Tensor = hidden_BSH @ slices(f"{head}.weight")[:].to(dtype).T
    return logits_BSV
