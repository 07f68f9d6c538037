"""Scores, against eager attention and the formulas of DESIGN written out in loops."""

import copy
import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.sample_scores import score_samples
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import (
    HeadId,
    Message,
    SampleScore,
    TokenizedText,
    UnscoredSample,
)
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    LocalModel,
    ScoringSettings,
    load_settings,
)
from resources.language_model import load_language_model

from .conftest import CONFIGS, make_model, make_text, visible_tokens

CHOSEN = (HeadId(0, 2), HeadId(1, 0), HeadId(1, 3), HeadId(2, 1))
OPTIONS = {
    "reading": ["attention_variance", "attention_cv2", "attention_lift", "attention_focus"],
    "queries": ["all", "last"],
    "tokens": ["all", "content"],
    "reduce": ["mean_then_variance", "variance_then_mean"],
    "span": ["prompt", "response"],
}
EVERY_OPTION = [
    dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())
]


def score(model, texts, *, heads=CHOSEN, max_batch_tokens=4096, **options):
    results = score_samples(
        model,
        texts,
        heads=heads,
        settings=ScoringSettings(**options),
        max_batch_tokens=max_batch_tokens,
    )
    return {result.sample_id: result for result in results}


def brute_force_score(model, text: TokenizedText, heads, options) -> float:
    """The score from full T x T attention, by the formulas alone."""
    ids = text.input_ids if options["span"] == "response" else text.input_ids[: text.response_start]
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([ids]), output_attentions=True, use_cache=False)
    model.set_attn_implementation("sdpa")
    if options["span"] == "response":
        span = range(text.response_start, len(ids))
    else:
        span = range(*text.content) if options["tokens"] == "content" else range(len(ids))
    queries = [span[-1]] if options["queries"] == "last" else list(span)
    partial = options["span"] == "response" or options["tokens"] == "content"
    if options["reading"] == "attention_focus":
        return float(np.mean([focus(model, out.attentions, h, queries, span) for h in heads]))
    groups = [[head] for head in heads]
    if options["reduce"] == "mean_then_variance":
        groups = [list(heads)]
    readings = []
    for group in groups:
        if options["reading"] == "attention_lift":
            readings.append(lift_variance(model, out.attentions, group, queries, span, partial))
            continue
        a = np.zeros(len(span))
        for head in group:
            matrix = out.attentions[head.layer][0, head.head].double().numpy()
            for i in queries:
                a += matrix[i, span.start : span.stop] / len(queries) / len(group)
        if partial:
            a = a / a.sum()
        variance = sum((x - 1 / len(a)) ** 2 for x in a) / len(a)
        readings.append(
            variance * len(a) ** 2 if options["reading"] == "attention_cv2" else variance
        )
    return float(np.mean(readings))


def focus(model, attentions, head, queries, span) -> float:
    matrix = attentions[head.layer][0, head.head].double().numpy()
    visible = visible_tokens(model, head.layer, [True] * len(matrix))
    found = []
    for i in queries:
        keys = [j for j in span if j in visible[i]]
        if len(keys) > 1:
            shares = matrix[i, keys] / matrix[i, keys].sum()
            found.append(1 + sum(p * math.log(p) for p in shares if p > 0) / math.log(len(keys)))
    return np.mean(found)


def lift_variance(model, attentions, group, queries, span, partial) -> float:
    lifts, numbers = [], []
    for j in span:
        seen = []
        for head in group:
            matrix = attentions[head.layer][0, head.head].double().numpy()
            visible = visible_tokens(model, head.layer, [True] * len(matrix))
            seen += [matrix[i, j] * len(visible[i]) for i in queries if i != j and j in visible[i]]
        if seen:
            lifts.append(np.mean(seen))
            numbers.append(len(seen))
    lifts = np.array(lifts)
    if partial:
        lifts = lifts / np.average(lifts, weights=numbers)
    return np.average((lifts - np.average(lifts, weights=numbers)) ** 2, weights=numbers)


@pytest.mark.parametrize("options", EVERY_OPTION, ids=lambda options: "-".join(options.values()))
@pytest.mark.parametrize("name", ["llama-gqa", "gemma3"])
def test_every_option_is_its_formula(name, options):
    model = make_model(name)
    texts = [make_text("a", 17, 11), make_text("b", 14, 9), make_text("c", 19, 12)]
    got = score(model, texts, **options, min_tokens=2)
    for text in texts:
        result = got[text.sample_id]
        if isinstance(result, UnscoredSample):  # the last query sees too little of the window
            assert (name, options["queries"]) == ("gemma3", "last")
            continue
        expected = brute_force_score(model, text, CHOSEN, options)
        assert result.score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", list(CONFIGS))
@pytest.mark.parametrize("reading", OPTIONS["reading"])
def test_every_architecture(name, reading):
    model = make_model(name)
    options = {name: values[0] for name, values in OPTIONS.items()} | {"reading": reading}
    texts = [make_text("a", 17), make_text("b", 12), make_text("c", 23)]
    got = score(model, texts, **options)
    for text in texts:
        expected = brute_force_score(model, text, CHOSEN, options)
        assert got[text.sample_id].score == pytest.approx(expected, rel=1e-5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_language_model(
        LocalModel(source="local", path="models/tiny"), cache=tmp_path_factory.mktemp("models")
    )


def problem_texts(model, count: int, seed: int) -> list[TokenizedText]:
    return [
        model.tokenize(str(i), [Message("user", problem.prompt)])
        for i, problem in enumerate(generate_problems(count, seed=seed, split="train"))
    ]


@pytest.mark.parametrize("reading", OPTIONS["reading"])
def test_bfloat16_ranks_as_float32(tiny, reading):
    texts = problem_texts(tiny, 120, seed=3)
    heads = [HeadId(0, 1), HeadId(2, 6), HeadId(4, 3), HeadId(5, 0)]
    exact = score(tiny.model, texts, heads=heads, reading=reading)
    coarse = score(
        copy.deepcopy(tiny.model).to(torch.bfloat16), texts, heads=heads, reading=reading
    )
    ids = [text.sample_id for text in texts]
    pairs = [[scores[i].score for i in ids] for scores in (exact, coarse)]
    assert stats.spearmanr(*pairs).statistic >= 0.99


@pytest.mark.parametrize("reading", OPTIONS["reading"])
def test_bfloat16_depends_on_the_batch_by_its_own_rounding(tiny, reading):
    texts = problem_texts(tiny, 40, seed=4)
    model = copy.deepcopy(tiny.model).to(torch.bfloat16)
    heads = [HeadId(0, 1), HeadId(2, 6), HeadId(4, 3), HeadId(5, 0)]
    together = score(model, texts, heads=heads, reading=reading)
    alone = score(model, texts, heads=heads, reading=reading, max_batch_tokens=1)
    for text in texts:
        one, other = (scores[text.sample_id].score for scores in (together, alone))
        assert one == pytest.approx(other, rel=1e-2)


@pytest.mark.long
@pytest.mark.parametrize("reading", OPTIONS["reading"])
def test_smollm2_scores_are_those_of_eager_attention(reading, tmp_path_factory):
    cache = tmp_path_factory.getbasetemp() / "smollm2"  # converted once for all readings
    model = load_language_model(
        load_settings(PROJECT_ROOT / "presets/smollm2.yaml").base_model, cache=cache
    )
    heads = [HeadId(1, 2), HeadId(7, 2), HeadId(18, 8), HeadId(20, 8)]
    options = {name: values[0] for name, values in OPTIONS.items()} | {"reading": reading}
    problems = ["A pen costs 3 dollars. How much are 7 pens?", "Eve has 9 nuts. She eats 4. " * 9]
    texts = [model.tokenize(text[:5], [Message("user", text)]) for text in problems]
    got = score(model.model, texts, heads=heads, reading=reading)
    for text in texts:
        expected = brute_force_score(model.model, text, heads, options)
        assert got[text.sample_id].score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reading", OPTIONS["reading"])
def test_batches_order_and_company_do_not_matter(any_model, reading):
    texts = [make_text(f"t{i}", 10 + 5 * (i % 7), 4) for i in range(15)]
    whole = score(any_model, texts, reading=reading)
    assert sorted(whole) == sorted(text.sample_id for text in texts)
    single = score(any_model, texts[::-1], reading=reading, max_batch_tokens=1)
    few = score(any_model, texts[3:8], reading=reading, max_batch_tokens=60)
    for other in (single, few):
        for sample_id, result in other.items():
            assert result.score == pytest.approx(whole[sample_id].score, rel=1e-5)
            assert result.num_tokens == whole[sample_id].num_tokens


def test_the_response_is_not_seen(llama):
    text = make_text("a", 15, 8)
    prompt = replace(text, input_ids=text.input_ids[:15])
    assert score(llama, [text]) == score(llama, [prompt])


def test_layers_above_the_deepest_chosen_are_not_run(llama):
    expected = score(llama, [make_text("a", 15)], heads=[HeadId(0, 1), HeadId(1, 2)])
    for parameter in llama.get_decoder().layers[2].parameters():
        parameter.data.normal_(generator=torch.Generator().manual_seed(9))
    run = []
    llama.get_decoder().layers[2].register_forward_hook(lambda *_: run.append(True))
    got = score(llama, [make_text("a", 15)], heads=[HeadId(1, 2), HeadId(0, 1), HeadId(0, 1)])
    assert got == expected
    assert len(run) == 1  # when the architecture was checked


def uninformative(model):
    """Makes all attention uniform over the visible tokens: queries of zero."""
    for layer in model.get_decoder().layers:
        layer.self_attn.q_proj.weight.zero_()
    return model


def test_uninformative_heads_have_the_known_scores(llama):
    """Uniform causal attention gives a_j = (H_T - H_{j-1}) / T: cv2 tends to 1, the lift is 1."""
    size = 100
    text = make_text("a", size)
    model = uninformative(llama)
    a = np.array([sum(1 / i for i in range(j, size + 1)) / size for j in range(1, size + 1)])
    expected = ((a - 1 / size) ** 2).sum() / size
    got = score(model, [text])["a"].score
    assert got == pytest.approx(expected, rel=1e-5)
    cv2 = score(model, [text], reading="attention_cv2")["a"].score
    assert cv2 == pytest.approx(got * size**2)
    assert 0.9 < cv2 < 1
    assert score(model, [text], reading="attention_lift")["a"].score < 1e-9
    # The last query is uniform, so nothing varies.
    assert score(model, [text], queries="last")["a"].score < 1e-15


def test_near_uniform_variance_does_not_cancel(llama):
    """At 1e-7 relative spread, mean(a^2) - 1/T^2 in single precision would be noise."""
    model = uninformative(llama)
    text = make_text("a", 100)
    assert 0 <= score(model, [text], queries="last", reading="attention_cv2")["a"].score < 1e-12


# what can't be scored -----------------------------------------------------------------------------


def test_short_prompts_are_quarantined(llama):
    texts = [make_text("short", 7), make_text("enough", 8)]
    got = score(llama, texts)
    assert isinstance(got["enough"], SampleScore)
    assert got["short"] == UnscoredSample(
        "short", "too_few_tokens", "7 usable tokens, at least 8 are needed"
    )
    # Of eleven tokens eight are content; under the lift nobody else sees the last of them.
    text = make_text("content", 11)
    assert score(llama, [text], tokens="content")["content"].num_tokens == 8
    lifted = score(llama, [text], tokens="content", reading="attention_lift")["content"]
    assert lifted == UnscoredSample(
        "content", "too_few_tokens", "7 usable tokens, at least 8 are needed"
    )
    no_response = score(llama, [make_text("r", 20)], span="response")["r"]
    assert no_response.reason == "too_few_tokens"


def test_long_prompts_are_quarantined_or_truncated(llama):
    texts = [make_text("long", 40), make_text("fits", 30), make_text("endless", 200)]
    quarantined = score(llama, texts, max_tokens=30)
    assert quarantined["long"] == UnscoredSample(
        "long", "too_long", "40 tokens, at most 30 can be scored"
    )
    truncated = score(llama, texts, max_tokens=30, long_prompts="truncate")
    first_part = replace(texts[0], input_ids=texts[0].input_ids[:30], response_start=30)
    # In a batch of another size the sums are rounded otherwise.
    alone = score(llama, [first_part])["long"].score
    assert truncated["long"].score == pytest.approx(alone, rel=1e-6)
    assert truncated["fits"].score == pytest.approx(quarantined["fits"].score, rel=1e-6)
    assert [truncated[name].is_truncated for name in ("long", "fits")] == [True, False]
    by_context = score(llama, texts)
    assert by_context["endless"].detail == "200 tokens, at most 128 can be scored"
    assert by_context["long"].num_tokens == 40


def test_no_attention_on_the_content_is_quarantined(llama):
    """All attention goes to the first token, which lies outside the content."""
    llama.get_decoder().embed_tokens.weight[3] = 0
    for layer in llama.get_decoder().layers:
        layer.self_attn.q_proj.weight.zero_()
    module = llama.get_decoder().layers[0].self_attn
    forward = module.forward

    def look_at_the_first(hidden_states, attention_mask=None, **kwargs):
        size = hidden_states.shape[1]
        mask = torch.zeros(1, 1, size, size, dtype=torch.bool)
        mask[..., 0] = True
        return forward(hidden_states, attention_mask=mask, **kwargs)

    module.forward = look_at_the_first
    text = make_text("a", 20)
    for reduce in OPTIONS["reduce"]:
        for reading in OPTIONS["reading"]:
            options = {"tokens": "content", "reduce": reduce, "reading": reading}
            if reading == "attention_lift":
                continue  # nobody sees the content: no usable token
            got = score(llama, [text], heads=[HeadId(0, 0), HeadId(0, 2)], **options)["a"]
            assert got == UnscoredSample(
                "a", "no_attention_mass", "no attention on the 17 usable tokens"
            )


def test_a_prompt_that_breaks_the_model_is_quarantined(llama):
    text = make_text("a", 20)
    llama.get_decoder().embed_tokens.weight[max(text.input_ids)] = math.nan
    got = score(llama, [text])["a"]
    assert got == UnscoredSample("a", "not_finite", "the model's attention has NaN")


@pytest.mark.parametrize(
    ("heads", "shown"), [([], "got none"), ([HeadId(3, 0)], "got 3.0"), ([HeadId(0, 4)], "0.4")]
)
def test_heads_must_be_the_models(llama, heads, shown):
    with pytest.raises(SettingsError, match=f"3 x 4 heads, {shown}|{shown}"):
        score(llama, [make_text("a", 20)], heads=heads)


def test_texts_are_read_lazily(llama):
    read = []

    def texts():
        for i in range(2000):
            read.append(i)
            yield make_text(f"t{i}", 9)

    results = score_samples(
        llama, texts(), heads=CHOSEN, settings=ScoringSettings(), max_batch_tokens=4096
    )
    next(results)
    assert len(read) < 1000
    results.close()
    assert llama.config._attn_implementation == "sdpa"


# whose attention ----------------------------------------------------------------------------------
