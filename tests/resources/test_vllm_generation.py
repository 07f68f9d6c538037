"""vLLM's answers through lm-eval's own class, with an engine in vLLM's place that can be had here.

The stand-in takes what vLLM takes, and answers with transformers: what differs from the Hugging
Face backend is then ours, in prompts, settings or the account of truncation.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitseer_assets.errors import EvaluationError
from circuitseer_assets.records import Outcome
from circuitseer_assets.settings import PROJECT_ROOT, Benchmark, EvaluationSettings, LocalModel
from resources.evaluator import evaluate
from resources.language_model import find_model_files, load_language_model

torch.set_num_threads(1)

TINY = LocalModel(source="local", path=str(PROJECT_ROOT / "models/tiny"), dtype="float32")
PROBLEMS = Benchmark(task="word_problems", num_problems=12, seed=3)
ENGINE = '''
import types
import torch
from dataclasses import dataclass
from transformers import AutoModelForCausalLM

asked = []


@dataclass(kw_only=True)
class SamplingParams:
    """The arguments of vLLM's own that are in use, and no others."""

    max_tokens: int
    stop: list
    stop_token_ids: list
    temperature: float
    top_p: float
    top_k: int
    seed: int | None


def TokensPrompt(*, prompt_token_ids):
    return prompt_token_ids


class LLM:
    def __init__(self, *, model, dtype, max_model_len, max_num_seqs, generation_config, **more):
        assert generation_config == "vllm" and max_num_seqs == 8, more
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
        config = types.SimpleNamespace(max_model_len=max_model_len)
        self.llm_engine = types.SimpleNamespace(model_config=config)

    def generate(self, prompts, *, sampling_params, use_tqdm, lora_request):
        return [self._answer(*one) for one in zip(prompts, sampling_params, strict=True)]

    def _answer(self, prompt, params):
        asked.append(params)
        ids, reason = list(prompt), "length"
        while reason == "length" and len(ids) < len(prompt) + params.max_tokens:
            with torch.no_grad():
                ids.append(int(self._model(torch.tensor([ids])).logits[0, -1].argmax()))
            reason = "stop" if ids[-1] in params.stop_token_ids else "length"
        output = types.SimpleNamespace(token_ids=ids[len(prompt):], finish_reason=reason)
        return types.SimpleNamespace(outputs=[output])
'''
FILES = {
    "vllm/__init__.py": ENGINE,
    "vllm/lora/__init__.py": "",
    "vllm/lora/request.py": "LoRARequest = None",
    "vllm/renderers/__init__.py": "",
    "vllm/renderers/hf.py": "def resolve_chat_template(tokenizer, **_): return None",
    "vllm/tokenizers.py": (
        "from transformers import AutoTokenizer\n"
        "def get_tokenizer(name, *, tokenizer_mode, trust_remote_code, revision):\n"
        "    return AutoTokenizer.from_pretrained(name)\n"
    ),
    "vllm-0.32.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n",
}


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What is imported as vLLM, once: lm-eval registers its class a single time."""
    site = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        yield importlib.import_module("vllm")
    for name in [n for n in sys.modules if n.partition(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.fixture
def vllm(stand_in: Any) -> Any:
    """The stand-in, which has not been asked anything."""
    stand_in.asked.clear()
    return stand_in


@pytest.fixture
def ask(tmp_path: Path) -> Callable[..., list[Outcome]]:
    def ask(backend: str, **changes: Any) -> list[Outcome]:
        settings = EvaluationSettings(
            **{"tasks": ("word_problems",), "batch_size": 8, "backend": backend, **changes}
        )
        find = find_model_files if backend == "vllm" else load_language_model
        model = find(TINY, cache=tmp_path)
        return evaluate(model, [PROBLEMS], settings, folder=tmp_path)

    return ask


def test_an_engine_that_is_not_installed_is_refused(ask: Callable[..., list[Outcome]]) -> None:
    with pytest.raises(
        EvaluationError, match=r"must be hf where vLLM .* got vllm; install it with"
    ):
        ask("vllm")


def test_vllm_is_asked_the_same_and_its_answers_are_read_alike(
    vllm: Any, ask: Callable[..., list[Outcome]]
) -> None:
    # A limit that cuts some responses and leaves others whole.
    outcomes = ask("vllm", max_new_tokens=14)
    assert outcomes == ask("hf", max_new_tokens=14)
    assert {outcome.truncated for outcome in outcomes} == {True, False}
    assert {(p.temperature, p.top_p, p.seed) for p in vllm.asked} == {(0.0, 1.0, None)}


def test_every_sampled_answer_has_a_seed_of_its_own(
    vllm: Any, ask: Callable[..., list[Outcome]]
) -> None:
    ask("vllm", max_new_tokens=2, temperature=0.6, top_p=0.95, num_repeats=2, seed=5)
    assert {(p.temperature, p.top_p, p.top_k) for p in vllm.asked} == {(0.6, 0.95, 0)}
    assert len({p.seed for p in vllm.asked}) == 2 * 12
