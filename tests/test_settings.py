"""Settings: complete examples load, and every breach of a rule ends in one clear sentence."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    SLICES,
    load_settings,
    parse_settings,
    settings_path,
)

PRESETS = sorted((PROJECT_ROOT / "presets").glob("*.yaml"))


@pytest.fixture
def values() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "presets/tiny.yaml").read_text())
    return loaded


def set_value(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    *parents, last = path.split(".")
    inner = changed
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return changed


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_complete_example(path: Path) -> None:
    settings = load_settings(path)
    assert settings.preset == path.stem
    assert set(SLICES) < set(settings.model_dump())


def test_the_presets_named_in_the_readme_exist() -> None:
    assert {p.stem for p in PRESETS} == {
        "tiny",
        "smollm2",
        "gsm8k",
        "paper",
        "paper-1gpu",
        "tiny_study",
        "smollm2_study",
    }


BAD = [
    ("study", {"methods": ["ifd", "full"]}, "study: methods must hold random, .*; correct it"),
    ("study", {"methods": ["random", "random"]}, "study: methods must hold each method once"),
    ("selection.budget", {"samples": 0}, "selection.budget.samples: .*greater.* got 0; correct it"),
    ("selection.budget", {}, "selection.budget: set exactly one of fraction, samples and tokens"),
    (
        "selection.budget",
        {"fraction": 0.1, "samples": 5},
        "selection.budget: set exactly one .* got fraction and samples",
    ),
    ("automation", {"owners": ["data"]}, "automation.owners.0: .*e-mail .* `team:`, got 'data'"),
    ("corpus.num_sample", 3, "corpus.num_sample: no setting has this name, got 3"),
    ("corpus.num_samples", "many", "corpus.num_samples: .*valid integer, got 'many'"),
    ("corpus.num_samples", True, "corpus.num_samples: .*valid integer, got True"),
    ("base_model.source", "magnet", "base_model: input tag 'magnet' .* 'local', 'hub', 'gguf'"),
    ("base_model.prompt_template", "Q:", r"base_model: prompt_template must contain \{prompt\}"),
    ("evaluation.tasks", ["gsm8k"], r"evaluation.tasks must be among .*\(word_problems\)"),
    ("evaluation.tasks", [], "evaluation.tasks: .*at least 1 item"),
    ("evaluation.backend", "tgi", "evaluation.backend: .*'hf' or 'vllm', got 'tgi'"),
    (
        "execution",
        {"training": {"num_processes": 3}},
        r"training.batch_size must be a multiple of execution.training.num_processes \(3\), .*16",
    ),
    (
        "execution",
        {"training": {"sharding": "fsdp"}},
        "execution.training: sharding must be none where num_processes is 1, got fsdp; set",
    ),
    ("evaluation.num_repeats", 4, "evaluation: temperature must be above 0 when num_repeats"),
    ("training.epochs", "two", "training.epochs: .*valid number, got 'two'"),
    ("head_ranking.fraction", 1.5, "head_ranking.fraction: .*less than or equal to 1, got 1.5"),
    ("scoring.heads", "loudest", "scoring.heads: .*'reasoning'.* got 'loudest'"),
    (
        "corpus",
        {"source": "reasoning_gym", "num_samples": 9, "held_out_share": 0.1},
        "corpus.held_out_share: .*greater than or equal to 0.2, got 0.1",
    ),
    ("preset", "../x", "preset: .*pattern.* got '../x'"),
    (
        "base_model",
        {"source": "hub", "repo_id": "a/b", "revision": "main"},
        "base_model.revision: must be a commit of 40 hexadecimal digits, .* got 'main'",
    ),
    (
        "corpus",
        {
            "source": "hub",
            "repo_id": "a/b",
            "revision": "main",
            "columns": {"messages": "messages"},
        },
        "corpus.revision: must be a commit of 40 hexadecimal digits, .* got 'main'",
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{b[0]}={b[1]}" for b in BAD])
def test_a_bad_value_is_named_with_path_value_rule_and_remedy(
    values: dict[str, Any], path: str, value: Any, message: str
) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        parse_settings(set_value(values, path, value), origin="circuitseer.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("slice_", "name", "value", "message"),
    [
        ("base_model", "device", "cuda:1", "base_model.device must be auto, cuda or cpu .* cuda:1"),
        ("training", "lora", {}, "execution.training.sharding must be none where training.lora"),
    ],
)
def test_what_several_processes_cannot_train_is_refused(
    values: dict[str, Any], slice_: str, name: str, value: Any, message: str
) -> None:
    values["execution"] = {"training": {"num_processes": 2, "sharding": "fsdp"}}
    parse_settings(values, origin="circuitseer.yaml")
    values[slice_][name] = value
    with pytest.raises(SettingsError, match=message):
        parse_settings(values, origin="circuitseer.yaml")


def test_a_missing_slice_says_where_to_add_it(values: dict[str, Any]) -> None:
    del values["corpus"]
    with pytest.raises(SettingsError, match=r"corpus must be set; add it to circuitseer\.yaml"):
        parse_settings(values, origin="circuitseer.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1,", "must be a YAML file in UTF-8"),
        (b"\xff\xfe", "must be a YAML file in UTF-8"),
        (b"- a\n", "must hold a mapping of slices, got list"),
        (b"", "must hold a mapping of slices, got NoneType"),
    ],
)
def test_a_file_that_is_no_settings_file_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "circuitseer.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=message):
        load_settings(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist; name one with CIRCUITSEER_SETTINGS"):
        load_settings(tmp_path / "none.yaml")


def test_the_environment_goes_before_the_home_and_the_home_before_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIRCUITSEER_SETTINGS", raising=False)
    assert settings_path(tmp_path) == PROJECT_ROOT / "circuitseer.yaml"
    (tmp_path / "settings.yaml").write_text("preset: x")
    assert settings_path(tmp_path) == tmp_path / "settings.yaml"
    monkeypatch.setenv("CIRCUITSEER_SETTINGS", str(tmp_path / "mine.yaml"))
    assert settings_path(tmp_path) == tmp_path / "mine.yaml"


def test_a_corpus_that_rewords_a_benchmark_is_refused_with_it(values: dict[str, Any]) -> None:
    values["corpus"] = {"source": "reasoning_gym", "num_samples": 10}
    values["decontamination"] = {"benchmarks": [{"task": "gsm8k", "path": "test.jsonl"}]}
    values["evaluation"] = {"tasks": ["gsm8k"]}
    with pytest.raises(SettingsError, match="its templates re-word GSM8K's test problems"):
        parse_settings(values, origin="circuitseer.yaml")


def test_a_slice_holds_every_default(values: dict[str, Any]) -> None:
    settings = parse_settings(values, origin="circuitseer.yaml")
    assert settings.slice("selection")["power"] == 1.0
    assert settings.slice("base_model")["dtype"] == "auto"


# Anything at all ----------------------------------------------------------------------------------


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(values: dict[str, Any], prefix: str = "") -> list[str]:
    """Returns the path of every value in nested mappings."""
    found = []
    for name, value in values.items():
        found.append(prefix + name)
        if isinstance(value, dict):
            found += places(value, f"{prefix}{name}.")
    return found


COMPLETE = yaml.safe_load((PROJECT_ROOT / "presets/tiny.yaml").read_text())


@given(path=st.sampled_from(places(COMPLETE)), value=ANYTHING)
@example(path="decontamination", value={"\n": None})
@settings(max_examples=400, deadline=None)
def test_whatever_a_setting_is_set_to_is_taken_or_refused_in_one_sentence(
    path: str, value: Any
) -> None:
    changed = set_value(COMPLETE, path, value)
    try:
        parsed = parse_settings(changed, origin="circuitseer.yaml")
    except SettingsError as error:
        said = str(error)
        parsed = None
    if parsed is None:
        assert "\n" not in said
        assert any(name in said for name in (*SLICES, "preset", "the settings"))
        return
    # What is taken is taken as it stands, and says the same again.
    again = parse_settings(parsed.model_dump(mode="json"), origin="circuitseer.yaml")
    assert again == parsed


@given(content=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_whatever_a_file_holds_is_settings_or_refused_in_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        load_settings(path)
    assert "\n" not in str(refused.value)
