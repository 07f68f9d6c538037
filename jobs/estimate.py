"""What a run on some settings would take, before anything is downloaded or run."""

import json
from pathlib import Path

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.estimate import Estimate, ModelShape, estimate_run
from circuitseer_assets.settings import Settings
from resources.sizes import (
    HubSize,
    benchmark_shapes,
    corpus_shape,
    find_gpu,
    model_shape,
    shape_of_config,
)


def estimate_settings(
    settings: Settings,
    *,
    gpu: str,
    rows: int | None = None,
    prompt_tokens: float = 110,
    response_tokens: float = 1000,
    config: Path | None = None,
) -> Estimate:
    """Returns what a whole run on the settings takes, in an empty home.

    Args:
        settings: of the run.
        gpu: the name of the kind of GPU.
        rows: how many rows the corpus has, where the user tells; then also how long they are.
        prompt_tokens: the mean length of a prompt in tokens.
        response_tokens: the mean length of a response in tokens.
        config: a model's config.json that is taken for the base model's.

    Raises:
        SettingsError: the GPU or the corpus is not known, a number is below 1, or the file is none.
        ModelError: the model is not known, or its configuration lacks a size.
    """
    told = None
    if rows is not None:
        if min(rows, prompt_tokens, response_tokens) < 1:
            raise SettingsError(
                f"--rows, --prompt-tokens and --response-tokens must be at least 1, got {rows}, "
                f"{prompt_tokens:g} and {response_tokens:g}; correct them"
            )
        told = HubSize(rows, prompt_tokens, response_tokens)
    device = find_gpu(gpu)
    shape = model_shape(settings.base_model) if config is None else _shape_in(config)
    corpus = corpus_shape(settings, told)
    return estimate_run(settings, shape, corpus, benchmark_shapes(settings), device)


def _shape_in(config: Path) -> ModelShape:
    try:
        return shape_of_config(json.loads(config.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--config must be a model's config.json, got {config} ({error}); correct the path"
        ) from error
