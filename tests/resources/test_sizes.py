"""What is said of a model's, a corpus's and a benchmark's size, against themselves."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from circuitseer_assets.errors import ModelError, SettingsError
from circuitseer_assets.method.estimate import ModelShape
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    ExecutionSettings,
    HubModel,
    LocalModel,
    Settings,
    load_settings,
    parse_settings,
)
from jobs.estimate import estimate_settings
from resources.sizes import (
    GPUS,
    HubSize,
    benchmark_shapes,
    corpus_shape,
    find_gpu,
    model_shape,
    shape_of_config,
)
from tests.test_cli import circuitseer

TINY = PROJECT_ROOT / "models/tiny"


def preset(name: str, **slices) -> Settings:
    values = load_settings(PROJECT_ROOT / f"presets/{name}.yaml").model_dump(mode="json")
    return parse_settings({**values, **slices}, origin="a test")


def test_a_local_models_sizes_are_its_configurations() -> None:
    config = json.loads((TINY / "config.json").read_text())
    shape = model_shape(LocalModel(source="local", path=str(TINY)))
    assert (shape.num_layers, shape.num_heads) == (6, 8)
    assert shape == shape_of_config({"text_config": config})
    del config["num_key_value_heads"]
    assert shape_of_config(config) == replace(shape, num_kv_heads=8)
    del config["vocab_size"]
    with pytest.raises(ModelError, match=r"config\.json must name vocab_size"):
        shape_of_config(config)


def test_a_gguf_file_and_the_table_say_the_same_of_smollm2() -> None:
    known = HubModel(source="hub", repo_id="HuggingFaceTB/SmolLM2-135M-Instruct", revision="0" * 40)
    shape = model_shape(preset("smollm2").base_model)
    assert shape == model_shape(known)
    assert shape.num_parameters == pytest.approx(134.5e6, rel=0.001)


def test_a_model_on_the_hub_that_is_not_known_is_refused() -> None:
    unknown = HubModel(source="hub", repo_id="someone/large", revision="0" * 40)
    with pytest.raises(ModelError, match=r"give the sizes with --config"):
        model_shape(unknown)


def test_a_generated_corpus_is_as_long_as_it_says() -> None:
    shape = corpus_shape(preset("tiny"))
    assert shape.num_rows == pytest.approx(preset("tiny").corpus.num_samples, rel=0.1)
    assert shape.bytes_a_token == pytest.approx(1.0, abs=0.2)  # a character is a token


def test_a_told_corpus_has_the_mean_that_was_told() -> None:
    shape = corpus_shape(preset("tiny"), HubSize(1_000_000, 90, 5_600, 0.73))
    assert shape.num_rows == 1_000_000
    mean = sum(response for _, response in shape.lengths) / len(shape.lengths)
    assert mean == pytest.approx(5_600, rel=0.02)
    ranked = sorted(response for _, response in shape.lengths)
    # As the card of a part of OpenR1-Math-220k has it: 32,888 characters to 12,980.
    assert ranked[180] / ranked[100] == pytest.approx(32_888 / 12_980, rel=0.03)


def test_a_corpus_on_the_hub_that_is_not_known_is_refused() -> None:
    corpus = {
        "source": "hub",
        "repo_id": "someone/rows",
        "revision": "0" * 40,
        "columns": {"messages": "messages"},
    }
    with pytest.raises(SettingsError, match=r"tell its size with --rows"):
        corpus_shape(preset("tiny", corpus=corpus))


def test_benchmarks_are_counted_known_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "test.jsonl"
    file.write_text('{"question": "1?", "answer": "#### 1"}\n' * 7)
    own = {"task": "own", "yaml": str(tmp_path / "own.yaml")}
    benchmarks = [{"task": "gsm8k", "path": str(file)}, {"task": "aime24"}, own]
    settings = preset(
        "tiny",
        decontamination={"benchmarks": benchmarks},
        evaluation={"tasks": ["gsm8k", "aime24"]},
    )
    assert [shape.num_problems for shape in benchmark_shapes(settings)] == [7, 30]
    with pytest.raises(SettingsError, match="the benchmark own must name a file or num_problems"):
        benchmark_shapes(
            settings.model_copy(
                update={"evaluation": settings.evaluation.model_copy(update={"tasks": ("own",)})}
            )
        )


def test_what_cannot_be_estimated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"--gpu must be one of H200, .* got 'abacus'"):
        find_gpu("abacus")
    with pytest.raises(SettingsError, match=r"--rows, .* must be at least 1, got 0"):
        estimate_settings(preset("tiny"), gpu="H100", rows=0)
    with pytest.raises(SettingsError, match=r"--config must be a model's config\.json"):
        estimate_settings(preset("tiny"), gpu="H100", config=tmp_path / "none.json")


@pytest.mark.parametrize("name", ["paper", "paper-1gpu"])
def test_the_articles_presets_are_estimated_without_a_hub(name: str) -> None:
    settings = preset(name)
    done = estimate_settings(settings, gpu="A100-80GB")
    assert 10 < done.gpu_hours < 1000
    # The one is shared out over eight GPUs, the other trains adapters.
    alone = settings.model_copy(update={"execution": ExecutionSettings()})
    fits = [
        next(stage for stage in made.stages if stage.stage == "checkpoint").memory_bytes
        < GPUS["A100-80GB"].memory_bytes
        for made in (done, estimate_settings(alone, gpu="A100-80GB"))
    ]
    assert fits == [True, name == "paper-1gpu"]


# `make demo PRESET=smollm2` on two cores: the table artifact_costs, and the home's size afterwards.
SMOLLM2_TOKENS = {
    "head_ranking": 118_503,
    "sample_scores": 24_199,
    "checkpoint": 9_324,
    "evaluation": 6_752 + 6_752,
}
SMOLLM2_BYTES = 1_111e6


def test_a_real_run_took_what_was_estimated() -> None:
    done = estimate_settings(preset("smollm2"), gpu="H100")
    said = {stage.stage: stage.num_tokens for stage in done.stages if stage.num_tokens}
    assert said == pytest.approx(SMOLLM2_TOKENS, rel=0.3)
    assert sum(said.values()) == pytest.approx(sum(SMOLLM2_TOKENS.values()), rel=0.15)
    assert done.disk_bytes == pytest.approx(SMOLLM2_BYTES, rel=0.3)


@pytest.mark.long
def test_the_command_prints_a_table_and_json(tmp_path: Path) -> None:
    done = circuitseer(tmp_path, "estimate", "--preset", "paper", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["num_parameters"] == ModelShape(**said["model"]).num_parameters
    table = circuitseer(tmp_path, "estimate", "--preset", "paper", "--gpu", "MI300X").stdout
    assert [line.split()[0] for line in table.splitlines() if line][2:] == [
        *(stage["stage"] for stage in said["stages"]),
        "all",
    ]
    assert not list(tmp_path.iterdir())
