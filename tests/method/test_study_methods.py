"""The methods of a study: real settings, one change each, the same budget for all but two kinds."""

from dataclasses import replace

import pytest

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.scorers import SCORERS
from circuitseer_assets.method.study_methods import (
    CLAIMS,
    METHODS,
    PRIMARY_PAIRS,
    SENSITIVITY_PAIR,
    baselines_besides,
    cell_slice,
    find_method,
    list_pairs,
)
from circuitseer_assets.records import PoolSize
from circuitseer_assets.settings import PROJECT_ROOT, Settings, load_settings, parse_settings

SIZE = PoolSize(num_samples=1000, num_scored=1000, num_tokens=100_000)
TINY = load_settings(PROJECT_ROOT / "presets/tiny.yaml")


def settings_of(name: str, seed: int = 3) -> Settings:
    slices = {
        slice_: cell_slice(
            find_method(name), seed, slice_, TINY.slice(slice_), measure_pool=lambda: SIZE
        )
        for slice_ in ("scoring", "selection", "training")
    }
    return parse_settings(TINY.model_dump(mode="json") | slices, origin=name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_setting_that_can_be_used(name: str) -> None:
    settings = settings_of(name)
    assert settings.scoring.scorer in SCORERS
    assert settings.selection.seed == settings.training.seed == 3
    same = settings.training.model_copy(update={"seed": TINY.training.seed})
    assert same == TINY.training


def test_no_two_methods_select_alike() -> None:
    selected = {(repr(s.scoring), repr(s.selection)) for s in map(settings_of, METHODS)}
    assert len(selected) == len(METHODS)


def test_every_scorer_is_compared() -> None:
    assert {settings_of(name).scoring.scorer for name in METHODS} == set(SCORERS)


def test_a_scorer_that_no_method_names_is_a_baseline_that_takes_the_top(monkeypatch) -> None:
    added = baselines_besides(METHODS, [*SCORERS, "sentences"])
    assert set(added) == {"sentences"}
    monkeypatch.setitem(SCORERS, "sentences", replace(SCORERS["length"]))
    monkeypatch.setitem(METHODS, "sentences", added["sentences"])
    settings = settings_of("sentences")
    assert (settings.scoring.scorer, settings.selection.sampling) == ("sentences", "top")
    assert ("sentences", "random") in list_pairs(list(METHODS))


CIRCUITSEER = {
    "scorer": "attention",
    "reading": "attention_variance",
    "heads": "reasoning",
    "tokens": "all",
    "span": "prompt",
    "sampling": "exponential",
    "debias": "none",
    "budget": {"fraction": 0.1},
}
TOP, ALL = {"sampling": "top"}, {"budget": {"fraction": 1.0}}
EQUAL_TOKENS = {"budget": {"tokens": 10_000}}


@pytest.mark.parametrize(
    ("name", "differs"),
    [
        ("circuitseer", {}),
        ("all_heads", {"heads": "all"}),
        ("random_heads", {"heads": "random"}),
        ("top_k", TOP),
        ("output_based", {"span": "response"}),
        ("attention_cv2", {"reading": "attention_cv2"}),
        ("attention_lift", {"reading": "attention_lift"}),
        ("attention_focus", {"reading": "attention_focus", "tokens": "content"}),
        ("content_tokens", {"tokens": "content"}),
        ("length_debiased", {"debias": "length"}),
        ("random", {"scorer": "random"}),
        ("max_loss", {"scorer": "max_loss"} | TOP),
        ("ifd", {"scorer": "ifd"} | TOP),
        ("quality", {"scorer": "quality"} | TOP),
        ("diversity", {"scorer": "diversity"} | TOP),
        ("attention_influence", {"scorer": "attention_influence", "heads": "retrieval"} | TOP),
        ("length", {"scorer": "length"}),
        ("shortness", {"scorer": "shortness"}),
        ("full", {"scorer": "random"} | ALL),
        ("oracle", {"scorer": "oracle"}),
        ("circuitseer_tokens", EQUAL_TOKENS),
        ("random_tokens", {"scorer": "random"} | EQUAL_TOKENS),
        ("length_tokens", {"scorer": "length"} | EQUAL_TOKENS),
        ("shortness_tokens", {"scorer": "shortness"} | EQUAL_TOKENS),
    ],
)
def test_what_a_name_stands_for(name: str, differs: dict) -> None:
    """The whole list, from what the baselines and ablations are defined to be."""
    settings = settings_of(name)
    scoring, selection = settings.scoring.model_dump(), settings.selection.model_dump()
    found = {key: (scoring | selection)[key] for key in CIRCUITSEER}
    found["budget"] = {key: v for key, v in found["budget"].items() if v is not None}
    assert found == CIRCUITSEER | differs


def test_budgets() -> None:
    assert settings_of("full").selection.budget.fraction == 1.0
    assert settings_of("random_tokens").selection.budget.tokens == 10_000
    assert settings_of("ifd").selection.budget == TINY.selection.budget


@pytest.mark.parametrize("name", ["ifd", "circuitseer"])
def test_a_share_is_of_the_pool_though_a_scorer_leaves_samples_out(name) -> None:
    half = replace(SIZE, num_scored=505)
    values = {**TINY.slice("selection"), "budget": {"fraction": 0.1005}}
    found = cell_slice(find_method(name), 0, "selection", values, measure_pool=lambda: half)
    assert found["budget"] == {"samples": 101}
    tokens = cell_slice(
        find_method("random_tokens"), 0, "selection", values, measure_pool=lambda: half
    )
    assert tokens["budget"] == {"tokens": 10_050}


def test_random_heads_are_others_for_every_seed() -> None:
    assert (
        settings_of("random_heads", 1).scoring.seed != settings_of("random_heads", 2).scoring.seed
    )
    assert settings_of("all_heads", 1).scoring == settings_of("all_heads", 2).scoring


def test_the_hypotheses_are_about_methods_there_are() -> None:
    claimed = [(method, against) for _, method, against in CLAIMS]
    assert set(PRIMARY_PAIRS) <= set(claimed)
    assert {name for pair in (*claimed, SENSITIVITY_PAIR) for name in pair} <= set(METHODS)


def test_what_is_compared_are_the_claims_and_every_method_with_random() -> None:
    pairs = list_pairs(list(METHODS))
    assert len(pairs) == len(set(pairs))
    assert {method for method, against in pairs if against == "random"} == set(METHODS) - {"random"}
    assert list_pairs(["random", "ifd"]) == [("ifd", "random")]


def test_unknown_methods_and_budgets_that_are_no_share_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"study\.methods must be among circuitseer, .* 'rand'"):
        find_method("rand")
    with pytest.raises(SettingsError, match=r"selection\.budget must be a fraction"):
        cell_slice(
            find_method("random_tokens"),
            0,
            "selection",
            {**TINY.slice("selection"), "budget": {"samples": 10}},
            measure_pool=lambda: SIZE,
        )
