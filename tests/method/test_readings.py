"""Readings of each head, against eager attention and their definitions in loops."""

import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.chat_text import question_span
from circuitseer_assets.method.readings import READINGS, find_reading
from circuitseer_assets.method.sample_scores import score_samples
from circuitseer_assets.records import (
    HeadId,
    Message,
    SampleScore,
    TokenizedText,
    UnscoredSample,
)
from circuitseer_assets.settings import PROJECT_ROOT, LocalModel, ScoringSettings
from resources.language_model import LanguageModel, load_language_model

from .conftest import CONFIGS, make_model, make_text

HEAD_SET = (HeadId(0, 2), HeadId(1, 0), HeadId(1, 3), HeadId(2, 1))
OF_PROMPT = [name for name, reading in READINGS.items() if reading.marks_of_prompt]


def marked_text(name: str, length: int) -> TokenizedText:
    """Returns a prompt of a template token, content, a template token, and marks in the content."""
    text = make_text(name, length)
    numbers = (3, 4, length // 2, length - 3)
    return TokenizedText(name, text.input_ids, (1, length - 1), length, numbers, 2 * length // 3)


def by_definition(reading: str, matrix: np.ndarray, text: TokenizedText) -> float:
    content = range(*text.content)
    question = [i for i in content if i >= text.question_start]
    facts = [i for i in content if i < text.question_start]
    last = [len(text.input_ids) - 1]
    if reading == "look_back":
        pairs = [(i, j) for i in content for j in content if j <= i]
        total = sum(matrix[i, j] * math.log(1 + i - j) for i, j in pairs)
        return total / sum(matrix[i, j] for i, j in pairs)
    queries, keys = {
        "content_mass": (content, content),
        "number_mass": (content, text.numbers),
        "question_to_facts": (question, facts),
        "answer_to_content": (last, content),
        "answer_to_numbers": (last, text.numbers),
    }[reading]
    return float(np.mean([sum(matrix[i, j] for j in keys) for i in queries]))


def eager_attention(model, text: TokenizedText) -> list[np.ndarray]:
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = model(input_ids=torch.tensor([text.input_ids]), output_attentions=True)
    model.set_attn_implementation("sdpa")
    return [layer[0].double().numpy() for layer in out.attentions]


@pytest.mark.parametrize("reading", OF_PROMPT)
@pytest.mark.parametrize("name", list(CONFIGS))
def test_every_reading_is_its_definition(name: str, reading: str) -> None:
    """In one padded batch, with grouped key-value heads and sliding windows among them."""
    model = make_model(name)
    texts = [marked_text("a", 17), marked_text("b", 23), marked_text("c", 20)]
    settings = ScoringSettings(reading=reading, min_tokens=2)
    results = score_samples(model, texts, heads=HEAD_SET, settings=settings, max_batch_tokens=1000)
    scores = {result.sample_id: result for result in results}
    for text in texts:
        layers = eager_attention(model, text)
        expected = np.mean(
            [by_definition(reading, layers[h.layer][h.head], text) for h in HEAD_SET]
        )
        assert scores[text.sample_id].score == pytest.approx(expected, rel=1e-5)
        assert scores[text.sample_id].num_tokens == len(text.input_ids) - 2


@pytest.mark.parametrize("reading", OF_PROMPT)
def test_blocks_of_rows_give_what_one_block_gives(reading, llama, monkeypatch) -> None:
    texts = [marked_text("a", 60)]
    settings = ScoringSettings(reading=reading)

    def score() -> float:
        [one] = score_samples(llama, texts, heads=HEAD_SET, settings=settings, max_batch_tokens=99)
        return one.score

    whole = score()
    monkeypatch.setattr("circuitseer_assets.method.attention._BLOCK_ELEMENTS", 1)
    assert score() == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize(
    ("reading", "numbers", "question_start"),
    [("question_to_facts", (3,), 1), ("number_mass", (), 9), ("answer_to_numbers", (), 9)],
)
def test_a_prompt_without_what_a_reading_looks_at_has_no_score(
    llama, reading: str, numbers: tuple[int, ...], question_start: int
) -> None:
    """Beside one that has it, in the same batch: of one sentence, or without a digit."""
    whole = marked_text("b", 20)
    lacking = TokenizedText("a", whole.input_ids, (1, 19), 20, numbers, question_start)
    settings = ScoringSettings(reading=reading)
    scored = score_samples(
        llama, [lacking, whole], heads=HEAD_SET, settings=settings, max_batch_tokens=1000
    )
    results = {result.sample_id: result for result in scored}
    assert isinstance(results["b"], SampleScore)
    assert results["a"] == UnscoredSample(
        "a", "no_attention_mass", "no attention on the 18 usable tokens"
    )


def test_an_unknown_reading_and_one_of_the_prompt_on_a_response_are_refused() -> None:
    with pytest.raises(SettingsError, match=r"scoring\.reading must be one of attention_variance"):
        find_reading(ScoringSettings(reading="attention"))
    with pytest.raises(SettingsError, match=r"scoring\.span must be 'prompt' for the reading"):
        find_reading(ScoringSettings(reading="number_mass", span="response"))


@pytest.mark.parametrize(
    ("problem", "question"),
    [
        ("Ann has 3 pears. She eats 1.5 of them. How many are left?", "How many are left?"),
        ("How many are 3 and 4?", "How many are 3 and 4?"),
        ("Is it so? Yes! Why", "Why"),
        ("It costs $2.50 in all.", "It costs $2.50 in all."),
    ],
)
def test_the_question_is_the_last_sentence(problem: str, question: str) -> None:
    text = f"<user> {problem}<end>. Answer:"
    start, stop = question_span(text, (7, 7 + len(problem)))
    assert text[start:stop] == question


def test_a_tokenizer_tells_numbers_and_question(tmp_path) -> None:
    model = load_language_model(
        LocalModel(source="local", path=str(PROJECT_ROOT / "models/tiny")), cache=tmp_path
    )
    problem = "Ann has 12 pears. She eats 3. How many are left?"
    text = model.tokenize("s", [Message("user", problem)], "12 - 3 = 9")
    written = [model.tokenizer.decode([token]) for token in text.input_ids]
    assert "".join(written[i] for i in text.numbers) == "123"
    assert text.question_start is not None
    assert "".join(written[text.question_start : text.content[1]]).strip() == "How many are left?"


def test_tokens_of_several_characters_are_marked_whole() -> None:
    """Merged pairs of bytes: a token with a digit counts, and the one the question begins in."""
    problem = "Ann has 120 pears. She eats 3,5 of them. How many are left?"
    bpe = Tokenizer(BPE())
    bpe.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(vocab_size=300, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    bpe.train_from_iterator([problem] * 4, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe)
    model = LanguageModel(None, tokenizer, None, 1024, "Read: {prompt}\nAnswer 9:")
    text = model.tokenize("s", [Message("user", problem)])

    written = [tokenizer.decode([token]) for token in text.input_ids]
    start, stop = text.content
    assert len(text.input_ids) < len(problem)
    assert " 120" in written, "the trained merges make a token of several digits"
    with_digits = [i for i in range(start, stop) if any(c.isdigit() for c in written[i])]
    assert list(text.numbers) == with_digits
    assert "".join(written[text.question_start : stop]).strip() == "How many are left?"
