"""Greedy decoding with a KV cache: pages and a prompt become the tokens of an answer.

In: a `Batch` of prompts, padded to the right. Out: the new tokens of each, up to and without EOS.

The one idea: the cache is allocated once for prompt plus answer. The prompts are turned so that
their padding stands to the left; then every sample's next token is in the last column, and a step is
one token for the whole batch.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch
from .decoder import KVCache
from .model import DeepseekOCR


def _pad_left(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """x [B, T, D] and mask [B, T], padding turned from the right side to the left."""
    T = mask.shape[1]
    shift = T - mask.sum(1, keepdim=True)  # [B, 1]
    source = (torch.arange(T, device=x.device)[None] - shift) % T  # [B, T]
    return x.gather(1, source[..., None].expand_as(x)), mask.gather(1, source)


@torch.no_grad()
def greedy(
    model: DeepseekOCR, batch: Batch, max_new_tokens: int, *, stop_at_eos: bool = True
) -> list[list[int]]:
    """The most probable continuation of each prompt, without its EOS.

    The prompts of `batch` may have unequal lengths. Raises ValueError if prompt and answer would
    not fit the model's context.
    """
    config = model.config.decoder
    B, T = batch.input_ids.shape
    if T + max_new_tokens > config.max_position_embeddings:
        raise ValueError(
            f"prompt of {T} tokens and {max_new_tokens} new ones exceed the context of "
            f"{config.max_position_embeddings}"
        )
    x, valid = _pad_left(model.embed(batch), batch.attention_mask.bool())
    cache = KVCache(config, B, T + max_new_tokens, x.dtype, x.device)
    done = torch.zeros(B, dtype=torch.bool, device=x.device)
    columns = []
    for _ in range(max_new_tokens):
        hidden, _ = model.hidden(x, valid=valid, cache=cache)
        token = F.linear(hidden[:, -1], model.lm_head.weight).argmax(-1)  # [B]
        columns.append(token)
        done |= token == config.eos_token_id
        if stop_at_eos and done.all():  # read back each step: an answer is short, a wait is not
            break
        x = model.model.embed_tokens(token)[:, None]  # [B, 1, D]
        valid = torch.cat([valid, torch.ones_like(valid[:, :1])], dim=1)
    answers = torch.stack(columns, dim=1).tolist()
    if not stop_at_eos:
        return answers
    eos = config.eos_token_id
    return [answer[: answer.index(eos)] if eos in answer else answer for answer in answers]
