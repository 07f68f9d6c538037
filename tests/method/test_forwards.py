"""What is counted as a forward: whole ones, parts of one, and the tokens in them."""

from typing import Any

import pytest
import torch

from circuitseer_assets.method.attention import StopForward, decoder_of, intercept_attention
from circuitseer_assets.method.forwards import count_forwards
from circuitseer_assets.records import ModelUse
from circuitseer_assets.settings import PROJECT_ROOT


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(PROJECT_ROOT / "models/tiny").eval()


def ids(num_rows: int, num_tokens: int) -> torch.Tensor:
    return torch.ones((num_rows, num_tokens), dtype=torch.long)


def test_a_batch_counts_its_rows_and_their_tokens(model: Any) -> None:
    with torch.inference_mode(), count_forwards(model) as counted:
        model(input_ids=ids(3, 7))
        model(input_ids=ids(1, 5))
    assert counted.use == ModelUse(num_forwards=4.0, num_tokens=3 * 7 + 5)


def test_a_forward_that_stops_halfway_counts_half(model: Any) -> None:
    num_layers = model.config.num_hidden_layers

    def stop(call: Any, attend: Any) -> torch.Tensor:
        if call.layer == num_layers // 2 - 1:
            raise StopForward
        output: torch.Tensor = attend()
        return output

    with (
        torch.inference_mode(),
        count_forwards(model) as counted,
        intercept_attention(model, stop),
    ):
        decoder_of(model)(input_ids=ids(4, 6))
    assert counted.use == ModelUse(num_forwards=2.0, num_tokens=12)


def test_every_generated_token_is_a_forward(model: Any) -> None:
    with torch.inference_mode(), count_forwards(model) as counted:
        made = model.generate(ids(2, 9), max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert made.shape == (2, 13)
    # The first token follows from the prompt, the others from the token before, read once each.
    assert counted.use == ModelUse(num_forwards=2.0 * 4, num_tokens=2 * (9 + 3))


def test_training_counts_as_well_and_nothing_after_the_context(model: Any) -> None:
    with count_forwards(model) as counted:
        model(input_ids=ids(2, 3), labels=ids(2, 3)).loss.backward()
    model.zero_grad()
    before = counted.use
    model(input_ids=ids(2, 3))
    assert counted.use == before == ModelUse(2.0, 6)
