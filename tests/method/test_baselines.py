"""Every baseline against its definition: whole forwards one sample at a time, and loops."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from circuitseer_assets.errors import NotApplicableError, SettingsError
from circuitseer_assets.method import baselines, scorers
from circuitseer_assets.method.baselines import farthest_first
from circuitseer_assets.method.reader import Reader
from circuitseer_assets.method.scorers import SCORERS, Scorer, find_scorer, reads_response
from circuitseer_assets.records import (
    HeadId,
    Message,
    Sample,
    SampleScore,
    TokenizedText,
    UnscoredSample,
)
from circuitseer_assets.settings import PROJECT_ROOT, LocalModel, ScoringSettings
from resources.language_model import load_language_model

from .conftest import make_model, output_projection, value_hook

FIRST_LETTER = 3  # the id of the first letter of the tests' alphabet
ALPHABET = "abcdefghijklmnopqrstuvwxyz 0123456789"
YES, NO = 58, 59
HEAD_SET = (HeadId(0, 2), HeadId(1, 0), HeadId(1, 3))


def sample(name: str, prompt: str, response: str, **original) -> Sample:
    return Sample(
        name, f"p-{prompt}", "test", 0, (Message("user", prompt),), response, None, original
    )


def encode(text: str) -> list[int]:
    return [FIRST_LETTER + ALPHABET.index(letter) for letter in text if letter in ALPHABET]


def tokenize(sample_id, messages, response) -> TokenizedText:
    prompt = [1, *encode(messages[-1].content), 2]
    answer = [] if response is None else [*encode(response), 2]
    return TokenizedText(sample_id, (*prompt, *answer), (1, len(prompt) - 1), len(prompt))


def reader_of(model, *, heads=(), words=None, max_batch_tokens=200) -> Reader:
    words = {"yes": YES, "No": NO} if words is None else words
    return Reader(model, tokenize, heads, words.get, max_batch_tokens)


SAMPLES = [
    sample("s1", "how many pears has tom", "2 and 3 make 5"),
    sample("s2", "two apples", "7"),
    sample("s3", "ann walks 12 miles and rests then walks 9 more", "12 and 9 make 21 in all"),
    sample("s4", "count", "one two three four five six seven"),
    sample("s5", "two apples", "another answer"),
]


def score(name: str, model, samples=None, *, settings=None, **reader) -> dict:
    settings = settings or ScoringSettings(scorer=name)
    results = SCORERS[name].load()(reader_of(model, **reader), samples or SAMPLES, settings)
    return {result.sample_id: result for result in results}


def loss_of(model, ids: list[int], start: int) -> torch.Tensor:
    """Returns -log p of the tokens from `start` on, by one forward through the whole model."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return -torch.stack([logits[at - 1, ids[at]] for at in range(start, len(ids))])


def parts(one: Sample) -> tuple[list[int], list[int]]:
    text = tokenize("", one.messages, one.response)
    return list(text.input_ids[: text.response_start]), list(text.input_ids[text.response_start :])


def test_max_loss_is_the_mean_loss_of_the_response(any_model) -> None:
    scores = score("max_loss", any_model)
    assert set(scores) == {one.sample_id for one in SAMPLES}
    for one in SAMPLES:
        prompt, response = parts(one)
        expected = loss_of(any_model, prompt + response, len(prompt)).mean()
        assert scores[one.sample_id].score == pytest.approx(float(expected), rel=1e-5)
        assert scores[one.sample_id].num_tokens == len(response)


def test_ifd_compares_the_same_tokens_with_and_without_the_prompt(llama) -> None:
    scores = score("ifd", llama)
    kept = dropped = 0
    for one in SAMPLES:
        prompt, response = parts(one)
        given_prompt = loss_of(llama, prompt + response, len(prompt) + 1).mean()
        ratio = float(given_prompt / loss_of(llama, response, 1).mean())
        if ratio > 1:
            assert isinstance(scores[one.sample_id], UnscoredSample)
            assert scores[one.sample_id].reason == "prompt_misleads"
            dropped += 1
        else:
            assert scores[one.sample_id].score == pytest.approx(ratio, rel=1e-5)
            kept += 1
    assert kept
    assert dropped


def test_attention_influence_is_the_relative_rise_with_uniform_heads(llama) -> None:
    scores = score("attention_influence", llama, heads=HEAD_SET)
    risen = 0
    for one in SAMPLES:
        prompt, response = parts(one)
        clean = loss_of(llama, prompt + response, len(prompt)).mean()
        with uniform_heads(llama, HEAD_SET):
            masked = loss_of(llama, prompt + response, len(prompt)).mean()
        expected = max(0.0, float((masked - clean) / clean))
        assert scores[one.sample_id].score == pytest.approx(expected, rel=1e-4, abs=1e-6)
        risen += expected > 0
    assert risen > 0


class uniform_heads:  # noqa: N801 - reads as a statement
    """Replaces single heads' output, before the projection, by the running mean of their values."""

    def __init__(self, model, heads) -> None:
        self.model, self.heads = model, heads

    def __enter__(self) -> None:
        self.hooks = []
        for layer in {head.layer for head in self.heads}:
            values: list[torch.Tensor] = []
            self.hooks.append(value_hook(self.model, layer, values.append))
            self.hooks.append(
                output_projection(self.model, layer).register_forward_pre_hook(
                    self._replace(layer, values)
                )
            )

    def _replace(self, layer, values):
        group = self.model.config.num_attention_heads // self.model.config.num_key_value_heads

        def hook(_, args):
            value = values.pop()
            output = args[0].clone().unflatten(-1, (self.model.config.num_attention_heads, -1))
            for head in self.heads:
                if head.layer == layer:
                    own = value[:, :, head.head // group]
                    for at in range(own.shape[1]):
                        output[:, at, head.head] = own[:, : at + 1].mean(1)
            return (output.flatten(-2),)

        return hook

    def __exit__(self, *_) -> None:
        for hook in self.hooks:
            hook.remove()


def answering(model, bias: float):
    """Returns the model with so much added to the logits of yes and no, and a long context."""
    head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
    head.weight.data = model.lm_head.weight.data.clone()
    head.bias.data.zero_()
    head.bias.data[[YES, NO]] = bias
    model.lm_head = head
    model.config.max_position_embeddings = 1000
    return model


def test_quality_is_the_probability_of_yes(llama) -> None:
    llama = answering(llama, 6.0)
    scores = score("quality", llama)
    for one in SAMPLES:
        question = (
            f"###\n{one.prompt}\n\n{one.response}\n###\n\nDoes the previous paragraph demarcated "
            "within ### and ### contain informative signal for pre-training a large-language "
            "model? An informative datapoint should be well-formatted, contain some usable "
            "knowledge of the world, and strictly NOT have any harmful, racist, sexist, etc. "
            "content.\n\nOPTIONS:\n- yes\n- no\n"
        )
        ids = list(tokenize("", [Message("user", question)], None).input_ids)
        with torch.no_grad():
            chances = llama(input_ids=torch.tensor([ids])).logits[0, -1].double().softmax(-1)
        assert scores[one.sample_id].score == pytest.approx(float(chances[YES]), rel=1e-4)


def test_a_model_without_a_word_for_yes_cannot_be_asked(llama) -> None:
    with pytest.raises(NotApplicableError, match=r"'quality' needs .* no token for 'yes'"):
        score("quality", llama, words={"no": NO})


def test_a_model_that_answers_something_else_cannot_be_asked(llama) -> None:
    with pytest.raises(NotApplicableError, match=r"answers yes or no with a probability of at lea"):
        score("quality", answering(llama, -30.0))


def test_the_embedded_model_cannot_be_asked(tmp_path) -> None:
    tiny = load_language_model(
        LocalModel(source="local", path=str(PROJECT_ROOT / "models/tiny")), cache=tmp_path
    )
    reader = Reader(tiny.model, tiny.tokenize, (), tiny.find_token, 1000)
    with pytest.raises(NotApplicableError):
        list(SCORERS["quality"].load()(reader, SAMPLES, ScoringSettings(scorer="quality")))


def test_diversity_is_k_center_greedy_on_mean_states(llama) -> None:
    samples = SAMPLES[:4]
    scores = score("diversity", llama, samples)
    points = {}
    for one in samples:
        ids = tokenize("", one.messages, None).input_ids
        with torch.no_grad():
            states = llama.get_decoder()(input_ids=torch.tensor([ids])).last_hidden_state[0]
        points[one.sample_id] = states.double().mean(0).numpy()
    order = greedy_order(np.stack([points[one.sample_id] for one in samples]))
    expected = [samples[i].sample_id for i in order]
    assert sorted(scores, key=lambda name: -scores[name].score) == expected


def greedy_order(points: np.ndarray) -> list[int]:
    distances = cdist(points, points)
    taken = [int(np.argmin(np.linalg.norm(points - points.mean(0), axis=1)))]
    while len(taken) < len(points):
        left = [i for i in range(len(points)) if i not in taken]
        taken.append(max(left, key=lambda i: (min(distances[i][j] for j in taken), -i)))
    return taken


@given(
    st.lists(
        st.tuples(st.integers(-40, 40), st.integers(-40, 40)), min_size=2, max_size=14, unique=True
    )
)
def test_the_farthest_first_prefix_covers_within_twice_the_optimum(points) -> None:
    """Gonzalez: k-center greedy's radius is at most twice the best; here k = 2, tried in full."""
    places = np.array(points, dtype=float)
    distances = farthest_first(places)
    assert sorted(distances.tolist(), reverse=True)[0] == distances.max()
    taken = np.argsort(-distances, kind="stable")[:2]
    between = cdist(places, places)
    radius = between[:, taken].min(1).max()
    best = min(
        between[:, [i, j]].min(1).max() for i in range(len(places)) for j in range(i, len(places))
    )
    assert radius <= 2 * best + 1e-9


def test_equal_points_are_all_taken() -> None:
    assert np.isfinite(farthest_first(np.zeros((4, 2)))).all()
    assert farthest_first(np.ones((1, 3))).tolist() == [1.0]


def test_shortness_is_what_the_published_reading_comes_to_with_a_sink(llama) -> None:
    """All attention on one token: the variance is (1 - 1/T) / T, in the order of 1 / T."""
    for one, result in zip(SAMPLES, score("shortness", llama).values(), strict=True):
        attention = np.eye(len(parts(one)[0]))[0]
        assert attention.var() == pytest.approx(result.score * (1 - result.score))


def test_length_counts_prompt_and_response(llama) -> None:
    for one, result in zip(SAMPLES, score("length", llama).values(), strict=True):
        assert result.score == sum(len(part) for part in parts(one))


def test_random_is_the_same_for_all(llama) -> None:
    assert {result.score for result in score("random", llama).values()} == {1.0}


def test_the_oracle_knows_the_planted_noise(llama) -> None:
    rows = [
        sample("good", "a b", "c", is_planted_noise=False),
        sample("bad", "a b", "d", is_planted_noise=True),
    ]
    scores = score("oracle", llama, rows)
    assert (scores["good"].score, scores["bad"].score) == (1.0, 0.0)
    with pytest.raises(NotApplicableError, match=r"'oracle' needs .*is_planted_noise, test has no"):
        score("oracle", llama, SAMPLES)


# what they share ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SCORERS if n not in ("attention", "oracle")])
def test_order_and_batches_do_not_matter(name: str, llama) -> None:
    settings = ScoringSettings(scorer=name)
    llama = answering(llama, 6.0)
    kwargs = {"settings": settings, "heads": HEAD_SET}
    together = score(name, llama, max_batch_tokens=10_000, **kwargs)
    alone = score(name, llama, SAMPLES[::-1], max_batch_tokens=1, **kwargs)
    assert together.keys() == alone.keys()
    for sample_id, one in together.items():
        other = alone[sample_id]
        if isinstance(one, SampleScore):
            assert other.score == pytest.approx(one.score, rel=1e-4)
        else:
            assert other.reason == one.reason


@pytest.mark.parametrize("name", ["max_loss", "ifd", "attention_influence", "quality", "diversity"])
def test_what_cannot_be_read_has_a_reason(name: str, llama) -> None:
    long = sample("long", "pears " * 40, "five " * 10)
    settings = ScoringSettings(scorer=name)
    scores = score(name, llama, [*SAMPLES, long], settings=settings, heads=HEAD_SET)
    if name == "quality":  # the question alone is longer than this model's context
        assert {result.reason for result in scores.values()} == {"too_long"}
    else:
        assert scores["long"].reason == "too_long"
        assert sum(isinstance(result, SampleScore) for result in scores.values()) >= 2


def test_a_response_of_one_token_has_no_difficulty(llama) -> None:
    scores = score("ifd", llama, [SAMPLES[0], sample("empty", "two", "")])
    assert scores["empty"].reason == "too_few_tokens"


def test_every_scorer_can_be_found_and_says_where_it_is_from() -> None:
    for name, scorer in SCORERS.items():
        assert find_scorer(ScoringSettings(scorer=name)) is scorer
        assert callable(scorer.load())
        assert scorer.source


@pytest.mark.parametrize("name", SCORERS)
def test_a_scorer_costs_the_forwards_it_says(name: str, llama) -> None:
    """Rows that pass the first layer; k-center greedy and controls included."""
    rows, model = 0, answering(llama, 6.0)  # so that it can be asked, and read a question

    def count(_module, _args, output) -> None:
        nonlocal rows
        hidden = output[0] if isinstance(output, tuple) else output
        rows += hidden.shape[0]

    # Texts of different lengths with different prompts: none can stand for another.
    samples = [
        sample(
            f"s{i}",
            f"how many pears has tom after {i} days",
            "2 and 3 make 5",
            is_planted_noise=False,
        )
        for i in range(6)
    ]
    handle = model.model.layers[0].register_forward_hook(count)
    try:
        words = {"yes": YES, "No": NO}
        settings = ScoringSettings(scorer=name)
        scores = score(name, model, samples, settings=settings, heads=HEAD_SET, words=words)
    finally:
        handle.remove()
    assert set(scores) == {one.sample_id for one in samples}
    checking = 1 if name == "attention" else 0  # one text, whose attention is checked first
    assert rows == SCORERS[name].num_forwards * len(samples) + checking


def test_the_example_of_the_contributing_guide_works(llama, monkeypatch) -> None:
    guide = (PROJECT_ROOT / "CONTRIBUTING.md").read_text()
    function, entry = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    namespace: dict = {}
    exec(function, vars(baselines) | {"__name__": "example"}, namespace)
    exec(entry, {"Scorer": Scorer}, namespace)
    monkeypatch.setattr(baselines, "score_sentences", namespace["score_sentences"], raising=False)
    monkeypatch.setitem(scorers.SCORERS, "sentences", namespace["SENTENCES"])
    found = find_scorer(ScoringSettings(scorer="sentences"))
    rows = [sample("two", "a", "b. c."), sample("none", "a", "b")]
    results = {r.sample_id: r for r in found.load()(reader_of(llama), rows, ScoringSettings())}
    assert results["two"].score == 2.0
    assert results["none"].reason == "no_sentence"


def test_an_unknown_scorer_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        SettingsError, match=r"scoring\.scorer must be one of attention, random, .*"
    ):
        find_scorer(ScoringSettings(scorer="rendom"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"scorer": "attention"}, False),
        ({"scorer": "attention", "span": "response"}, True),
        ({"scorer": "ifd"}, True),
        ({"scorer": "diversity"}, False),
    ],
)
def test_which_scores_equal_prompts_share(settings, expected: bool) -> None:
    assert reads_response(ScoringSettings(**settings)) is expected


def test_a_loss_that_is_no_number_is_no_score() -> None:
    model = make_model("llama-gqa")
    model.lm_head.weight.data[:] = math.nan
    assert {result.reason for result in score("max_loss", model).values()} == {"not_finite"}
