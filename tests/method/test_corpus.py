import dataclasses
import itertools
import json
import math
import random
import uuid
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.corpus import (
    UnreadableRow,
    _SeenNumbers,
    curate_rows,
    normalise_text,
    read_sample,
    sample_from_texts,
)
from circuitseer_assets.records import Message, QuarantinedRow, Sample, digest_of
from circuitseer_assets.settings import Columns

PAIR = Columns(prompt="question", response="solution")
CHAT = Columns(messages="messages")


def read_pair(**row: object) -> Sample | QuarantinedRow:
    return read_sample(row, PAIR, source="a.jsonl", position=3)


def read_chat(messages: object, **row: object) -> Sample | QuarantinedRow:
    return read_sample({"messages": messages, **row}, CHAT, source="a.jsonl", position=3)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def numbered(rows):
    return (("a.jsonl", position, row) for position, row in enumerate(rows))


# normalise_text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Add 1 and 2.", "  Add\t1 \n and 2.\r\n"),
        ("caf\u00e9", "cafe\u0301"),
        ("a\u00a0b", "a b"),
    ],
)
def test_texts_that_count_as_equal(one, other):
    assert normalise_text(one) == normalise_text(other)


@pytest.mark.parametrize(
    ("one", "other"), [("n", "N"), ("x\u00b2", "x2"), ("5-3", "53"), ("a b", "ab")]
)
def test_texts_that_do_not_count_as_equal(one, other):
    assert normalise_text(one) != normalise_text(other)


@settings(deadline=None, database=None)
@given(st.text())
def test_normalising_twice_is_normalising_once(text):
    assert normalise_text(normalise_text(text)) == normalise_text(text)


# ids


def test_ids_are_digests_of_the_normalised_turns_and_response():
    sample = read_pair(question=" What is\n1 + 2? ", solution="3\n")
    assert isinstance(sample, Sample)
    assert sample.prompt_id == digest_of([["user", "What is 1 + 2?"]])
    assert sample.sample_id == digest_of([sample.prompt_id, "3"])


def test_the_text_itself_is_kept_as_it_came():
    sample = read_pair(question=" What is\n1 + 2? ", solution="3\n")
    assert (sample.prompt, sample.response) == (" What is\n1 + 2? ", "3\n")


def test_a_chat_of_one_user_turn_is_the_same_sample_as_the_pair():
    pair = read_pair(question="What is 1 + 2?", solution="3")
    chat = read_chat([turn("user", "What is 1 + 2?"), turn("assistant", "3")])
    assert (pair.sample_id, pair.prompt_id) == (chat.sample_id, chat.prompt_id)


def test_equal_words_in_other_roles_are_another_prompt():
    one = read_chat([turn("system", "A"), turn("user", "B"), turn("assistant", "C")])
    other = read_chat([turn("user", "A\n\nB"), turn("assistant", "C")])
    assert one.prompt == other.prompt
    assert one.prompt_id != other.prompt_id


def test_another_response_is_another_sample_of_the_same_prompt():
    one, other = read_pair(question="Q", solution="1"), read_pair(question="Q", solution="2")
    assert one.prompt_id == other.prompt_id
    assert one.sample_id != other.sample_id


def test_moving_words_between_prompt_and_response_changes_the_id():
    one, other = read_pair(question="a b", solution="c"), read_pair(question="a", solution="b c")
    assert one.sample_id != other.sample_id


def test_sample_from_texts_has_the_ids_of_the_same_row():
    made = sample_from_texts("Q", "A", source="x", position=0, original={})
    assert made.sample_id == read_pair(question="Q", solution="A").sample_id


# prompt and response


def test_a_row_keeps_source_position_and_all_its_columns():
    sample = read_pair(question="Q", solution="A", level=3, tags=["x", None])
    assert (sample.source, sample.position) == ("a.jsonl", 3)
    assert sample.messages == (Message("user", "Q"),)
    assert sample.original == {"question": "Q", "solution": "A", "level": 3, "tags": ["x", None]}


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"question": None, "solution": "A"}, "no_prompt", "column 'question' is missing"),
        ({"solution": "A"}, "no_prompt", "column 'question' is missing"),
        ({"question": " \n", "solution": "A"}, "no_prompt", "column 'question' is blank"),
        ({"question": "Q", "solution": None}, "no_response", "column 'solution' is missing"),
        ({"question": "Q", "solution": ""}, "no_response", "column 'solution' is blank"),
        ({"question": 7, "solution": "A"}, "not_text", "column 'question' must be text, got int 7"),
        (
            {"question": "Q", "solution": ["A"]},
            "not_text",
            "column 'solution' must be text, got list ['A']",
        ),
        (
            {"question": "\ud800", "solution": "A"},
            "not_text",
            "column 'question' holds half of a surrogate pair",
        ),
        (
            {"question": "Q", "solution": "A", "extra": {"deep": ["\udfff"]}},
            "not_text",
            "column 'extra' holds half of a surrogate pair",
        ),
        (
            {"question": "Q", "solution": "A", "extra": math.inf},
            "not_text",
            "column 'extra' holds what JSON cannot say: float inf",
        ),
        (
            {"question": "Q", "solution": "A", "extra": {1: 2}},
            "not_text",
            "column 'extra' holds what JSON cannot say: dict {1: 2}",
        ),
    ],
)
def test_unusable_rows_are_quarantined_with_the_reason(row, reason, detail):
    expected = QuarantinedRow("a.jsonl", 3, reason, detail)
    assert read_sample(row, PAIR, source="a.jsonl", position=3) == expected


def test_a_row_its_reader_could_not_parse_is_quarantined_as_such():
    row = read_sample(UnreadableRow("not_json", "torn"), PAIR, source="a", position=0)
    assert row == QuarantinedRow("a", 0, "not_json", "torn")


def test_long_values_are_shown_by_their_beginning():
    row = read_pair(question=["x" * 500], solution="A")
    assert len(row.detail) < 120


def test_original_values_become_json_without_loss():
    moment = datetime(2024, 2, 29, 23, 59, 58, 123456, tzinfo=UTC)
    some_uuid = uuid.UUID(int=5)
    sample = read_pair(
        question="Q",
        solution="A",
        moment=moment,
        day=date(2024, 2, 29),
        hour=time(1, 2, 3),
        price=Decimal("1.10"),
        took=timedelta(days=1, microseconds=1),
        key=some_uuid,
        blob=b"\x00\xff",
        pair=(1, 2.5),
        missing=math.nan,
        big=2**70,
        yes=True,
    )
    kept = json.loads(json.dumps(sample.original, allow_nan=False))
    assert kept == sample.original
    assert datetime.fromisoformat(kept["moment"]) == moment
    assert kept["day"] == "2024-02-29"
    assert kept["hour"] == "01:02:03"
    assert kept["price"] == "1.10"
    assert kept["took"] == "1 day, 0:00:00.000001"
    assert kept["key"] == str(some_uuid)
    assert kept["blob"] == "data:application/octet-stream;base64,AP8="
    assert kept["pair"] == [1, 2.5]
    assert kept["missing"] is None
    assert kept["big"] == 2**70
    assert kept["yes"] is True


# answers


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("48/2 = 24\n#### 72", "72"),
        ("5*3=15;#### 15", "15"),
        ("x\n#### 1,234,567\n", "1234567"),
        ("x\n#### -3.5  ", "-3.5"),
        ("x\n####12", "12"),
        ("x\n#### (1, 2)", "(1, 2)"),
        ("x #### 5\nand more", None),
        ("x\n####", None),
        ("no final answer", None),
    ],
)
def test_answer_from_the_end_of_the_response(solution, answer):
    assert read_pair(question="Q", solution=solution).answer == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (" 72 ", "72"),
        (72, "72"),
        (145.0, "145.0"),
        (Decimal("1.50"), "1.50"),
        (None, None),
        ("", None),
    ],
)
def test_answer_from_its_column(value, answer):
    columns = Columns(prompt="question", response="solution", answer="final")
    row = {"question": "Q", "solution": "x\n#### 9", "final": value}
    assert read_sample(row, columns, source="a", position=0).answer == answer


@pytest.mark.parametrize("value", [True, ["72"], {"n": 72}])
def test_an_answer_that_is_neither_text_nor_number_is_quarantined(value):
    columns = Columns(prompt="question", response="solution", answer="final")
    row = {"question": "Q", "solution": "x", "final": value}
    quarantined = read_sample(row, columns, source="a", position=0)
    assert quarantined.reason == "not_text"
    assert quarantined.detail.startswith("column 'final' must be text or a number, got ")


# chats


def test_the_last_assistant_turn_is_the_response_and_all_before_it_the_prompt():
    chat = [
        turn("system", "Be brief."),
        turn("user", "1 + 1?"),
        turn("assistant", "2"),
        turn("user", "And 1 more?"),
        turn("assistant", "2 + 1\n#### 3"),
        turn("user", "Thanks!"),
    ]
    sample = read_chat(chat, level=1)
    assert [message.content for message in sample.messages] == [
        "Be brief.",
        "1 + 1?",
        "2",
        "And 1 more?",
    ]
    assert [m.role for m in sample.messages] == ["system", "user", "assistant", "user"]
    assert sample.response == "2 + 1\n#### 3"
    assert sample.answer == "3"
    assert sample.original == {"messages": chat, "level": 1}


def test_sharegpt_turns_and_json_text_give_the_same_sample():
    chat = [turn("system", "S"), turn("user", "U"), turn("assistant", "A")]
    sharegpt = [
        {"from": "system", "value": "S"},
        {"from": "human", "value": "U"},
        {"from": "gpt", "value": "A"},
    ]
    samples = [read_chat(value) for value in (chat, sharegpt, json.dumps(chat))]
    assert len({(s.sample_id, s.messages, s.response) for s in samples}) == 1


@pytest.mark.parametrize(
    ("messages", "reason", "detail"),
    [
        (None, "no_prompt", "column 'messages' is missing"),
        ("", "no_prompt", "column 'messages' is blank"),
        ([], "no_prompt", "column 'messages' is list []"),
        ([turn("user", "U")], "no_response", "column 'messages' has no assistant turn with text"),
        (
            [turn("user", "U"), turn("assistant", " ")],
            "no_response",
            "column 'messages' has no assistant turn with text",
        ),
        (
            [turn("system", "S"), turn("assistant", "A")],
            "no_prompt",
            "column 'messages' has no user turn with text before the response",
        ),
        ("hello", "bad_messages", "column 'messages' is text, but no JSON"),
        (
            {"role": "user"},
            "bad_messages",
            "column 'messages' must be a list, got dict {'role': 'user'}",
        ),
        (["hello"], "bad_messages", "messages[0] must be a mapping, got str 'hello'"),
        (
            [turn("user", "U"), turn("tool", "T"), turn("assistant", "A")],
            "bad_messages",
            "messages[1] must have a role among system, user, human, assistant, gpt, "
            "got str 'tool'",
        ),
        (
            [{"role": "user", "content": None}, turn("assistant", "A")],
            "bad_messages",
            "messages[0] must have text, got missing",
        ),
    ],
)
def test_unusable_chats_are_quarantined_with_the_reason(messages, reason, detail):
    assert read_chat(messages) == QuarantinedRow("a.jsonl", 3, reason, detail)


# curate_rows


def test_the_first_of_equal_rows_is_the_sample_and_the_others_are_duplicates():
    rows = [
        {"question": "Q", "solution": "A"},
        {"question": " Q ", "solution": "A\n"},
        {"question": "Q", "solution": "B"},
        {"question": "Q", "solution": "A"},
    ]
    curated = list(curate_rows(numbered(rows), PAIR))
    first = curated[0]
    assert [type(row) for row in curated] == [Sample, QuarantinedRow, Sample, QuarantinedRow]
    duplicate = QuarantinedRow("a.jsonl", 1, "duplicate", f"repeats sample {first.sample_id}")
    assert curated[1] == duplicate
    assert curated[3] == dataclasses.replace(duplicate, position=3)


def test_rows_are_curated_as_a_stream():
    endless = ({"question": f"Q{i}", "solution": "A"} for i in itertools.count())
    first = list(itertools.islice(curate_rows(numbered(endless), PAIR), 5))
    assert [row.prompt for row in first] == ["Q0", "Q1", "Q2", "Q3", "Q4"]


def test_a_corpus_without_a_usable_row_is_an_error_that_counts_the_reasons():
    rows = [{"question": "Q"}, {"question": "Q", "solution": ""}, {"solution": "A"}]
    curated = curate_rows(numbered(rows), PAIR)
    assert [next(curated).reason for _ in rows] == ["no_response", "no_response", "no_prompt"]
    with pytest.raises(CorpusError) as caught:
        next(curated)
    assert str(caught.value) == (
        "the corpus must hold at least one usable row, got 0 of 3 (no_prompt: 1, no_response: 2); "
        "correct the corpus, or the columns named in corpus.columns"
    )


def test_an_empty_corpus_is_an_error():
    with pytest.raises(
        CorpusError, match=r"^the corpus must hold at least one usable row, got 0 of 0;"
    ):
        list(curate_rows([], PAIR))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None, database=None)
@given(st.dictionaries(st.sampled_from(["question", "solution", "messages", "x"]), JSON_VALUES))
def test_any_json_row_is_a_sample_or_quarantined_and_what_is_kept_is_json(row):
    for columns in (PAIR, CHAT, Columns(prompt="question", response="solution", answer="x")):
        read = read_sample(row, columns, source="a", position=0)
        if isinstance(read, Sample):
            assert read.prompt.strip()
            assert read.response.strip()
            json.dumps(read.original, allow_nan=False).encode()
        else:
            assert read.reason in ("no_prompt", "no_response", "not_text", "bad_messages")
            read.detail.encode()


def test_seen_numbers_are_a_set() -> None:
    lots, seen, expected = random.Random(1), _SeenNumbers(), set()
    # Many that end alike and so want the same place, the largest and the smallest among them.
    numbers = [lots.getrandbits(64) for _ in range(20_000)]
    numbers += [(lots.getrandbits(8) << 56) | lots.getrandbits(3) for _ in range(5_000)]
    numbers += [0, 2**64 - 1, 0, 2**64 - 1]
    for number in numbers:
        assert seen.add(number) == (number not in expected)
        expected.add(number)
        assert len(seen) == len(expected)
