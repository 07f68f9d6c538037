"""The journal on disk: what was set is there again, whatever the process that set it came to."""

import numpy as np
import pytest

from resources.journal import FileJournal


def test_another_process_finds_every_number_unchanged(tmp_path):
    path = tmp_path / "work" / "journal.jsonl"
    journal = FileJournal(path)
    values = np.array([1 / 3, np.nan, -1e-300, 0.1 + 0.2])
    journal["probe"] = values
    journal["joint:probe"] = np.zeros(2)
    again = FileJournal(path)
    assert list(again) == ["probe", "joint:probe"]
    assert np.array_equal(again["probe"], values, equal_nan=True)
    assert again["probe"].tobytes() == values.tobytes()


def test_the_last_of_a_name_counts(tmp_path):
    journal = FileJournal(tmp_path / "journal.jsonl")
    journal["probe"] = np.array([np.nan])
    journal["probe"] = np.array([2.0])
    assert FileJournal(tmp_path / "journal.jsonl")["probe"].tolist() == [2.0]


def test_half_a_line_is_cut_off_and_the_journal_goes_on(tmp_path):
    path = tmp_path / "journal.jsonl"
    journal = FileJournal(path)
    journal["one"], journal["two"] = np.ones(3), np.ones(3)
    path.write_bytes(path.read_bytes()[:-9])
    resumed = FileJournal(path)
    assert list(resumed) == ["one"]
    resumed["two"] = np.zeros(3)
    assert FileJournal(path)["two"].tolist() == [0, 0, 0]


def test_nothing_can_be_taken_out(tmp_path):
    journal = FileJournal(tmp_path / "journal.jsonl")
    journal["probe"] = np.ones(1)
    with pytest.raises(TypeError, match="only grows"):
        del journal["probe"]
