"""The same gradient step as one would write it with transformers: what the recipe's speed is compared with.

Every pair of a constitution and a response is a sequence of its own, padded to the longest of its group, and logits are
computed at every position.

Axes of tensor names: N pairs of a constitution and a response, S positions, V vocabulary, C constitutions, R responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from sami_nemo.config.schema import TrainConfig
from sami_nemo.objective import response_logprobs, sami_loss
from sami_nemo.records import ContrastGroup


class TransformersTrainer:
    """AdamW on transformers' model, with fp32 masters for bf16 weights as the recipe has them."""

    def __init__(self, checkpoint: Path, train: TrainConfig) -> None:
        from transformers import AutoModelForCausalLM

        dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True).train()
        self.parameters = list(self.model.parameters())
        with_masters = dtype == torch.bfloat16 and train.master_weights == "fp32"
        self.masters = [p.detach().float() for p in self.parameters] if with_masters else self.parameters
        self.clip_grad = train.clip_grad
        self.normalization = train.logprob_normalization
        self.optimizer = torch.optim.AdamW(
            self.masters,
            lr=train.lr,
            betas=(train.adam_beta1, train.adam_beta2),
            eps=train.eps,
            weight_decay=train.weight_decay,
        )

    def step(self, groups: Sequence[ContrastGroup]) -> float:
        """One gradient step with a group as a micro-batch.

        Returns:
            The mean loss of the groups before the step, nats.
        """
        total = 0.0
        for group in groups:
            loss = sami_loss(self.logprobs(group)) / len(groups)
            loss.backward()
            total += float(loss)
        if self.masters is not self.parameters:
            for master, parameter in zip(self.masters, self.parameters, strict=True):
                assert parameter.grad is not None
                master.grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(self.masters, self.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.masters is not self.parameters:
            with torch.no_grad():
                for master, parameter in zip(self.masters, self.parameters, strict=True):
                    parameter.copy_(master)
        return total

    def logprobs(self, group: ContrastGroup) -> Tensor:
        """`[C, R]`, length-normalised."""
        size = len(group.prompt_ids)
        pairs = [(prompt, response) for prompt in group.prompt_ids for response in group.response_ids]
        longest = max(len(prompt) + len(response) for prompt, response in pairs)
        tokens_NS = torch.zeros(len(pairs), longest, dtype=torch.long)
        seen_NS, counts_NS = torch.zeros_like(tokens_NS), torch.zeros_like(tokens_NS)
        for n, (prompt, response) in enumerate(pairs):
            length = len(prompt) + len(response)
            tokens_NS[n, :length] = torch.tensor((*prompt, *response))
            seen_NS[n, :length] = 1
            counts_NS[n, len(prompt) : length] = 1
        logits_NSV = self.model(input_ids=tokens_NS, attention_mask=seen_NS).logits[:, :-1]
        token_logprobs_NS = logits_NSV.float().log_softmax(-1).gather(-1, tokens_NS[:, 1:, None])[..., 0]
        return response_logprobs(token_logprobs_NS, counts_NS[:, 1:], self.normalization).view(size, size)
