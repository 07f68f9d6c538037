"""Every reading of the product, of all heads at once, so that many sets of heads cost one forward.

`bench.score_validity` asks what they measure.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bench.measure import log
from circuitseer_assets.method.attention import (
    Attend,
    AttentionCall,
    decoder_of,
    intercept_attention,
    num_queries_seeing,
    received_attention,
)
from circuitseer_assets.method.head_readings import mark_texts
from circuitseer_assets.method.readings import READINGS
from circuitseer_assets.records import Sample, TokenizedText
from resources.language_model import LanguageModel

Floats = NDArray[np.float64]

OF_PROFILE = ("attention_variance", "attention_cv2", "attention_lift", "content_cv2")
# Of each head by itself: the name in the tables, the reading, and whether it is of the content.
OF_HEADS = {
    "attention_focus": ("attention_focus", False),
    "content_focus": ("attention_focus", True),
    **{name: (name, True) for name, reading in READINGS.items() if reading.marks_of_prompt},
}


def read_problems_by(
    model: LanguageModel, problems: Sequence[Sample], membership: Floats
) -> dict[str, Floats]:
    """Returns every reading by every set of heads of every problem, (S, N) each.

    The readings are the package's own, all heads and all readings in one forward; the profile's
    spread is taken for every set, as `score_samples` takes it (the test compares the two).
    """
    scores: dict[str, list[Floats]] = {name: [] for name in (*OF_PROFILE, *OF_HEADS)}
    for number, sample in enumerate(problems):
        text = model.tokenize(sample.sample_id, sample.messages)
        seen = look_at(model, text)
        for name in OF_HEADS:
            scores[name].append(membership @ seen[name])
        for name, values in _spreads(seen, membership, text.content).items():
            scores[name].append(values)
        if number % 100 == 99:
            log.info("read %d of %d problems", number + 1, len(problems))
    return {name: np.stack(values, axis=1) for name, values in scores.items()}


@torch.inference_mode()
def look_at(model: LanguageModel, text: TokenizedText) -> dict[str, Floats]:
    """Returns every reading of each head, (heads,), and what each token receives, (heads, T).

    The latter as `received`, by `received_in_content` from the content alone, and as `lift`, with
    `num_seeing` queries a token.
    """
    size = len(text.input_ids)
    whole = mark_texts([text], [size], queries=[(0, size)], keys=[(0, size)])
    content = mark_texts([text], [size], queries=[text.content], keys=[text.content])
    found: dict[str, list[torch.Tensor]] = defaultdict(list)

    def look(call: AttentionCall, attend: Attend) -> torch.Tensor:
        heads = range(call.num_heads)
        for name, (reading, is_of_content) in OF_HEADS.items():
            marks = content if is_of_content else whole
            found[name].append(READINGS[reading].load()(call, heads, marks)[0])
        found["received"].append(received_attention(call, heads, whole.queries)[0])
        found["received_in_content"].append(received_attention(call, heads, content.queries)[0])
        seen = whole.queries * call.num_visible()
        found["lift"].append(received_attention(call, heads, seen, without_self=True)[0])
        found["num_seeing"].append(num_queries_seeing(call, whole.queries).expand(len(heads), -1))
        return attend()

    with intercept_attention(model.model, look):
        decoder_of(model.model)(input_ids=torch.tensor([text.input_ids]), use_cache=False)
    return {name: torch.cat(values).double().cpu().numpy() for name, values in found.items()}


def _spreads(
    seen: Mapping[str, Floats], membership: Floats, content: tuple[int, int]
) -> dict[str, Floats]:
    """Returns the readings of the profile, (S,) each."""
    profile = membership @ seen["received"]
    profile = profile / profile.shape[-1]
    within = membership @ seen["received_in_content"][:, slice(*content)]
    within = within / within.sum(-1, keepdims=True)
    counts = membership @ seen["num_seeing"]
    is_seen = (counts > 0).all(0)  # nobody else sees the last token
    counts = counts[:, is_seen]
    lift = (membership @ seen["lift"])[:, is_seen] / counts
    weights = counts / counts.sum(-1, keepdims=True)
    mean = (weights * lift).sum(-1, keepdims=True)
    return {
        "attention_variance": profile.var(-1),
        "attention_cv2": profile.var(-1) * profile.shape[-1] ** 2,
        "content_cv2": within.var(-1) * within.shape[-1] ** 2,
        "attention_lift": (weights * (lift - mean) ** 2).sum(-1),
    }
