import json
import re

import pytest

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.settings import ControlTexts, ProbeSetSettings
from resources.control_texts import PROSE_FILE, read_control_texts


def settings_with(num_control: int, *, seed: int = 0, **control: str) -> ProbeSetSettings:
    return ProbeSetSettings(num_control=num_control, seed=seed, control=ControlTexts(**control))


def prose_rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in PROSE_FILE.read_text(encoding="utf-8").splitlines()]


def test_the_shipped_prose_is_plentiful_short_and_without_numbers():
    rows = prose_rows()
    assert len({row["prompt"] for row in rows}) == len(rows) >= 24
    for row in rows:
        assert set(row) == {"prompt", "response"}
        assert 60 <= len(f"{row['prompt']} {row['response']}".split()) <= 120
        assert not re.search(r"\d", row["prompt"] + row["response"])


@pytest.mark.parametrize("source", ["prose", "plain_texts"])
def test_as_many_different_texts_as_asked_for(source):
    texts = read_control_texts(settings_with(20, source=source))
    assert len({text.prompt_id for text in texts}) == len(texts) == 20
    assert all(text.prompt.strip() and text.response.strip() for text in texts)


@pytest.mark.parametrize("source", ["prose", "plain_texts"])
def test_the_same_seed_gives_the_same_texts_and_another_seed_others(source):
    first = read_control_texts(settings_with(8, source=source))
    assert read_control_texts(settings_with(8, source=source)) == first
    assert read_control_texts(settings_with(8, source=source, seed=1)) != first


@pytest.mark.parametrize("source", ["prose", "plain_texts"])
def test_more_texts_keep_the_first(source):
    more = read_control_texts(settings_with(16, source=source))
    assert read_control_texts(settings_with(8, source=source)) == more[:8]


def test_none_are_read_where_none_are_asked_for():
    assert read_control_texts(settings_with(0, source="prose")) == []
    assert read_control_texts(settings_with(0, source="plain_texts")) == []


def test_texts_of_a_file(tmp_path):
    path = tmp_path / "texts.jsonl"
    rows = [{"prompt": f"Describe {n}.", "response": "It is so."} for n in "abc"]
    path.write_text("\n".join(json.dumps(row) for row in [*rows, rows[0]]), encoding="utf-8")
    texts = read_control_texts(settings_with(3, source="file", path=str(path)))
    assert {text.prompt for text in texts} == {"Describe a.", "Describe b.", "Describe c."}
    assert {text.source for text in texts} == {"texts.jsonl"}


def test_too_few_texts_are_one_sentence():
    num = len(prose_rows())
    with pytest.raises(CorpusError) as caught:
        read_control_texts(settings_with(num + 1, source="prose"))
    assert str(caught.value) == (
        f"probe_set.num_control must be at most {num} (the number of different control texts), "
        f"got {num + 1}; ask for fewer, or name a file with more in probe_set.control"
    )


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(CorpusError) as caught:
        read_control_texts(settings_with(1, source="file", path=f"{tmp_path}/no.jsonl"))
    assert str(caught.value) == (
        f"probe_set.control.path must name a file, got {tmp_path}/no.jsonl; "
        "correct the path (a relative one starts at the project's root)"
    )


def test_an_unusable_row_is_one_sentence(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"prompt": "Describe a.", "response": ""}\n', encoding="utf-8")
    with pytest.raises(CorpusError) as caught:
        read_control_texts(settings_with(1, source="file", path=str(path)))
    assert str(caught.value) == (
        f"{path} must have a prompt and a response in every row, got no_response in row 1 "
        "(column 'response' is blank); correct or remove the row"
    )
