"""The command line: what it refuses ends in one sentence, status 2, and nothing half-written."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from circuitseer_assets.cli import app
from circuitseer_assets.cli.terminal import print_table
from circuitseer_assets.errors import CircuitSeerError, SettingsError
from resources.overrides import home_of, write_overrides
from tests.conftest import small_settings, write_settings

CIRCUITSEER = str(Path(sys.executable).with_name("circuitseer"))


def circuitseer(home: Path, *arguments: str, **environment: str) -> Any:
    return subprocess.run(
        [CIRCUITSEER, *arguments],
        env={**os.environ, "CIRCUITSEER_HOME": str(home), "COLUMNS": "500", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    monkeypatch.setenv("CIRCUITSEER_HOME", str(folder))
    monkeypatch.delenv("CIRCUITSEER_SETTINGS", raising=False)
    return folder


def gsm8k_file(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


ROW = {"question": "Tom has 2 pears and eats one. How many are left?", "answer": "2-1=1\n#### 1"}


def test_overrides_are_written_to_the_home_and_are_then_in_use(home: Path, tmp_path: Path) -> None:
    train = gsm8k_file(tmp_path, "train.jsonl", [ROW])
    test = gsm8k_file(tmp_path, "test.jsonl", [ROW])
    assert write_overrides("gsm8k", train, test) == home
    written = yaml.safe_load((home / "settings.yaml").read_text())
    assert written["corpus"]["paths"] == [train]
    assert written["decontamination"]["benchmarks"][0]["path"] == test
    before = (home / "settings.yaml").read_bytes()
    assert home_of("gsm8k") == home
    assert (home / "settings.yaml").read_bytes() == before


def test_another_presets_home_is_refused_and_left_as_it_is(home: Path) -> None:
    write_overrides("tiny", None, None)
    before = (home / "settings.yaml").read_bytes()
    with pytest.raises(SettingsError, match=r"PRESET must be .*in use.* tiny, got 'smollm2'"):
        home_of("smollm2")
    assert (home / "settings.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("preset", "corpus", "evaluation", "message"),
    [
        ("gsm8k", None, None, "train.jsonl"),
        ("gsm8k", __file__, None, "benchmark gsm8k must name existing files"),
        ("gsm9k", None, None, "PRESET must be one of gsm8k, paper, paper-1gpu, .* got 'gsm9k'"),
        ("../tiny", None, None, "PRESET must be one of"),
        ("gsm8k", "no/such.jsonl", None, "CORPUS must be an existing file, got 'no/such.jsonl'"),
        ("gsm8k", None, "no/such.jsonl", "EVAL must be an existing file, got 'no/such.jsonl'"),
        ("tiny", __file__, None, "CORPUS needs a preset whose corpus.source is files"),
    ],
)
def test_a_bad_override_leaves_nothing(
    home: Path, preset: str, corpus: str | None, evaluation: str | None, message: str
) -> None:
    with pytest.raises(CircuitSeerError, match=message):
        write_overrides(preset, corpus, evaluation)
    assert not home.exists()


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selection": {"budget": {"samples": 0}}}, "selection.budget.samples: "),
        (
            {"base_model": {"source": "local", "path": "models/none"}},
            "base_model must be a folder with a config.json",
        ),
        (
            {
                "base_model": {"source": "hub", "repo_id": "no/model", "revision": "0" * 40},
            },
            "cannot be had from the Hugging Face hub",
        ),
        (
            {
                "corpus": {
                    "source": "files",
                    "paths": ["no/such.jsonl"],
                    "columns": {"prompt": "question", "response": "answer"},
                }
            },
            "no/such.jsonl",
        ),
    ],
    ids=["bad-setting", "missing-model", "unreachable-hub", "missing-file"],
)
def test_what_cannot_be_run_ends_in_one_sentence(
    home: Path, changes: dict[str, Any], message: str
) -> None:
    home.mkdir()
    write_settings(home, {**small_settings(), **changes})
    done = circuitseer(home, "run")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("circuitseer: ")
    assert message in last
    assert "Traceback" not in done.stderr
    artifacts = home / "artifacts"
    assert not [path for path in artifacts.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("", {"prompt": "question", "response": "answer"}, "usable row"),
        (json.dumps(ROW) + "\n", {"prompt": "problem", "response": "answer"}, "problem"),
    ],
    ids=["empty-corpus", "unknown-column"],
)
def test_a_corpus_without_usable_rows_ends_in_one_sentence(
    home: Path, tmp_path: Path, content: str, columns: dict[str, str], message: str
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(content)
    corpus = {"source": "files", "paths": [str(path)], "columns": columns}
    home.mkdir()
    write_settings(home, {**small_settings(), "corpus": corpus})
    done = circuitseer(home, "run")
    assert done.returncode == 2, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("circuitseer: ")
    assert message in last
    assert not [p for p in (home / "artifacts").rglob("*") if p.is_file()]


def test_overrides_and_a_named_settings_file_are_not_mixed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIRCUITSEER_SETTINGS", "presets/tiny.yaml")
    with pytest.raises(SettingsError, match="must not be given while CIRCUITSEER_SETTINGS names"):
        write_overrides("smollm2", None, None)
    assert not home.exists()


def test_a_home_that_is_a_file_ends_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    done = circuitseer(path, "run")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert str(path) in done.stderr


COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples_and_can_answer_in_json(command: str) -> None:
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
    assert "Examples:" in said
    assert f"circuitseer {command}" in said
    # `dev` answers nothing: it serves until it is stopped.
    assert ("--json" in said) == (command != "dev")


def test_help_names_every_command_and_the_shells_can_complete(home: Path) -> None:
    done = circuitseer(home, "--help")
    assert done.returncode == 0
    for command in COMMANDS:
        assert command in done.stdout
    shell = {
        "_CIRCUITSEER_COMPLETE": "complete_bash",
        "COMP_WORDS": "circuitseer l",
        "COMP_CWORD": "1",
    }
    assert circuitseer(home, **shell).stdout.split() == ["lineage"]


def test_a_table_is_not_cut_where_no_terminal_shows_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    row = ("sample_scores", "162,402,480", "why " * 30)
    print_table(["stage", "tokens", "because"], [row])
    assert capsys.readouterr().out.splitlines()[-1].split() == " ".join(row).split()


def test_the_plan_of_an_empty_home_is_a_table_and_json(home: Path) -> None:
    home.mkdir()
    write_settings(home, small_settings())
    table = circuitseer(home, "plan")
    assert table.returncode == 0, table.stderr
    head, _, *rows = [line.split() for line in table.stdout.splitlines() if line.strip()]
    assert head == ["asset", "would", "because"]
    steps = json.loads(circuitseer(home, "plan", "--json").stdout)
    assert [row[:2] for row in rows] == [[step["asset"], "compute"] for step in steps]
    assert [step["artifact_id"] for step in steps] == [None] * 9
    assert all(step["reason"] for step in steps)


def test_an_unknown_artifact_is_named(home: Path) -> None:
    done = circuitseer(home, "lineage", "subset-none")
    assert done.returncode == 2
    assert "subset-none" in done.stderr
