"""Finds the heads that copy: what once followed the present token, looked up and attended to."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from circuitseer_assets.method.attention import (
    Attend,
    AttentionCall,
    attention_rows,
    decoder_of,
    ensure_supported,
    intercept_attention,
)
from circuitseer_assets.records import HeadId


@torch.inference_mode()
def find_retrieval_heads(
    model: PreTrainedModel, *, num_chosen: int, seed: int, length: int = 48, num_sequences: int = 4
) -> tuple[HeadId, ...]:
    """Returns the `num_chosen` heads that best retrieve what once followed the present token.

    On sequences of random tokens, each repeated once, a head's score is its mean attention from a
    token's second occurrence to the token after its first; ties by (layer, head).

    Reference: Olsson et al., In-context learning and induction heads, arXiv 2209.11895.
    Deviation: Wu et al. (arXiv 2404.15574) find retrieval heads on documents with a planted fact;
    copying random tokens needs no document, no answer and one short pass.
    """
    shape = ensure_supported(model)
    generator = torch.Generator().manual_seed(seed)
    vocabulary = model.config.get_text_config().vocab_size
    once = torch.randint(vocabulary, (num_sequences, length), generator=generator)
    scores: dict[HeadId, float] = {}

    def intercept(call: AttentionCall, attend: Attend) -> Tensor:
        rows = attention_rows(call, range(shape.num_heads), length, 2 * length)
        copied = rows.diagonal(offset=1, dim1=-2, dim2=-1)  # query length + i, key i + 1
        for head, score in enumerate(copied.double().mean((0, 2)).tolist()):
            scores[HeadId(call.layer, head)] = score
        return attend()

    with intercept_attention(model, intercept):
        decoder_of(model)(input_ids=torch.cat([once, once], 1).to(model.device), use_cache=False)
    ranked = sorted(scores, key=lambda head: (-scores[head], head))
    return tuple(sorted(ranked[:num_chosen]))
