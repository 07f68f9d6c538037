"""Trying a saved model: a sound one has no faults, and each planted damage is named."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from circuitseer_assets.settings import PROJECT_ROOT
from resources.model_faults import find_model_faults

TINY = PROJECT_ROOT / "models/tiny"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the tiny model, whose embeddings are tied, to be damaged."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def damage(weights: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights, metadata={"format": "pt"})


def rename(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.unheard_of.weight"] = tensors.pop("model.norm.weight")


def shorten(tensors: dict[str, Any]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()


def test_a_sound_model_has_no_faults_though_its_embeddings_are_tied(model: Path) -> None:
    assert "lm_head.weight" not in load_file(model / "model.safetensors")
    assert find_model_faults(model) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda tensors: tensors["model.norm.weight"][3:4].fill_(math.nan),
            "1 tensors hold values that are not finite: model.norm.weight",
        ),
        (
            lambda tensors: tensors["model.norm.weight"][3:4].fill_(math.inf),
            "1 tensors hold values that are not finite: model.norm.weight",
        ),
        (
            lambda tensors: tensors.pop("model.norm.weight"),
            "1 tensors are missing: model.norm.weight",
        ),
        (
            lambda tensors: tensors.pop("model.embed_tokens.weight"),
            "tensors are missing: ",
        ),
        (rename, "1 tensors are unexpected: model.layers.0.mlp.unheard_of.weight"),
        (shorten, "the model does not load: RuntimeError"),
    ],
    ids=["nan", "inf", "missing", "missing and tied", "unexpected", "mismatched"],
)
def test_a_damaged_tensor_is_a_fault(
    model: Path, change: Callable[[dict[str, Any]], Any], fault: str
) -> None:
    damage(model / "model.safetensors", change)
    assert any(fault in found for found in find_model_faults(model))


def test_a_cut_file_and_a_lost_tokenizer_are_faults(model: Path) -> None:
    tokenizer = (model / "tokenizer.json").read_bytes()
    (model / "tokenizer.json").unlink()
    [fault] = find_model_faults(model)
    assert fault.startswith("the model does not generate: ")
    (model / "tokenizer.json").write_bytes(tokenizer)
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    [fault] = find_model_faults(model)
    assert fault.startswith("the model does not load: ")
