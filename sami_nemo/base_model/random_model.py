"""Small Mistral and Mixtral checkpoints with random weights and a small tokenizer, for tests and dry runs of the loop.

Nothing is downloaded: the byte-level BPE tokenizer is trained on the text that this package ships (queries, prompts,
principles), and everything follows from the geometry and the seed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sami_nemo.errors import CheckpointError
from sami_nemo.geometry import CLASSES, DEFAULTS, Architecture, Geometry

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

# With Mistral's usual 0.02 a small random model gives nearly the same logits for every prompt; at 0.2 its greedy
# answers depend on the prompt, so that contrast groups outlast the filter of identical responses.
WEIGHT_STD = 0.2
MAX_POSITIONS = 8192
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
SHIPPED_TEXT = (".jsonl", ".yaml", ".txt", ".md")


def geometry(
    architecture: Architecture = "mistral",
    num_layers: int = 2,
    hidden_size: int = 128,
    num_attention_heads: int = 4,
    num_key_value_heads: int = 2,
    num_experts: int | None = None,
    vocab_size: int = 1024,
) -> Geometry:
    """Of a random model. Heads have at least 32 channels by default: vLLM's CPU attention has no kernel below."""
    assert (num_experts is not None) == (architecture == "mixtral"), "a Mixtral has experts, others have none"
    return Geometry(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden_size,
        ffn_hidden_size=2 * hidden_size,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=hidden_size // num_attention_heads,
        vocab_size=vocab_size,
        num_experts=num_experts,
        experts_per_token=min(2, num_experts or 1),
        max_positions=MAX_POSITIONS,
        window=None,
        norm_epsilon=DEFAULTS[architecture]["norm_epsilon"],
        rope_theta=DEFAULTS[architecture]["rope_theta"],
        dtype="bfloat16",
    )


def build(directory: Path, geometry: Geometry, seed: int) -> None:
    """Write a random model (bfloat16 safetensors) and its tokenizer into `directory`."""
    import torch
    import transformers
    from transformers import GenerationConfig

    tokenizer = train_tokenizer(shipped_text(), geometry.vocab_size)
    config = _hf_config(geometry, tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, CLASSES[geometry.architecture])(config).to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _hf_config(geometry: Geometry, tokenizer: PreTrainedTokenizerFast) -> PretrainedConfig:
    from transformers import AutoConfig

    return AutoConfig.for_model(
        **geometry.hf(),
        initializer_range=WEIGHT_STD,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        # SAMI trains without an auxiliary loss.
        **({} if geometry.num_experts is None else {"router_aux_loss_coef": 0.0}),
    )


def shipped_text() -> Iterable[str]:
    """The text files of this package, in a fixed order."""
    package = Path(__file__).parents[1]
    return [path.read_text(encoding="utf-8") for path in sorted(package.rglob("*")) if path.suffix in SHIPPED_TEXT]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with BOS, EOS, padding and a chat template; like Mistral's it begins texts with BOS.

    Raises:
        CheckpointError: `texts` are too short for so many tokens. (Ids without a token could be sampled.)
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        found = tokenizer.get_vocab_size()
        raise CheckpointError("vocabulary", found, f"the shipped text must give {vocab_size} tokens; ask for fewer")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
