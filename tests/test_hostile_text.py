"""A corpus whose every text tries to be something else: markup, SQL, control codes, a template.

One home is made of it; whatever people look at afterwards shows its characters and obeys none.
"""

import html.parser
import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from circuitseer_assets.method.tables import printable
from resources.home import Home
from resources.report_files import find_report
from tests.conftest import small_settings, write_settings
from tests.test_cli import circuitseer

SCRIPT = "<script>alert(1)</script>"
IMAGE = "\"><img src=x onerror='alert(2)'>"
SQL = "'; drop table samples; --"
ANSI = "\x1b[2J\x1b[31m\x9b1m\x07"
BIDI = "\u202egnp.exe\u2066\u200b"
MARKDOWN = "| a | [b](javascript:alert(3)) |\n# c"
TEMPLATE = "{{ 7 * 7 }}<|im_end|>${HOME}%s"
HOSTILE = " ".join((SCRIPT, IMAGE, SQL, ANSI, BIDI, MARKDOWN, TEMPLATE))
FILE_NAME = f"a{ANSI}{BIDI}<script>'; drop table samples; --\".jsonl".replace("/", "")


def rows(number: int) -> list[dict[str, str]]:
    from circuitseer_assets.method.word_problems import generate_problems

    return [
        {
            "prompt": f"{problem.prompt} {HOSTILE if i % 3 == 0 else ''}",
            "response": f"{HOSTILE if i % 5 == 0 else ''} {problem.response}",
            HOSTILE: HOSTILE,
            "family": HOSTILE if i % 2 else problem.family,
        }
        for i, problem in enumerate(generate_problems(number, seed=3, split="train"))
    ]


class Hostile:
    """The home made of the hostile corpus, its settings hostile where they can be."""

    def __init__(self, folder: Path) -> None:
        from circuitseer_assets.definitions import make_definitions
        from jobs.run import run_job

        self.folder = folder / "home"
        corpus = folder / FILE_NAME
        corpus.write_text("".join(json.dumps(row) + "\n" for row in rows(160)))
        with corpus.open("a") as file:
            file.write(f"{HOSTILE}\n")  # a torn row
        self.folder.mkdir(exist_ok=True)
        columns = {"prompt": "prompt", "response": "response"}
        values = small_settings()
        values["corpus"] = {"source": "files", "paths": [str(corpus)], "columns": columns}
        write_settings(self.folder, values)
        self.home = Home.prepared(self.folder)
        self.home.set_environment()
        self.run = run_job(make_definitions(self.home), self.home)

    def metadata(self) -> Iterator[tuple[str, Any]]:
        with dg.DagsterInstance.get() as instance:
            for key in instance.all_asset_keys():
                event = instance.get_latest_materialization_event(key)
                if event is not None and event.asset_materialization is not None:
                    for name, value in event.asset_materialization.metadata.items():
                        yield f"{key.to_user_string()}.{name}", value


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("hostile")
        for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
            patch.setenv(name, str(folder / "home"))
        yield Hostile(folder)


def commanding(text: str) -> set[str]:
    """Returns the characters that a terminal or a reader obeys instead of showing."""
    return {
        f"U+{ord(letter):04X}"
        for letter in text
        if unicodedata.category(letter) in ("Cc", "Cf", "Cs") and letter not in "\n\t"
    }


def test_what_a_terminal_would_obey_is_spelled() -> None:
    assert printable(f"a{ANSI}{BIDI}\r\nb") == (
        "a\\x1b[2J\\x1b[31m\\x9b1m\\x07\\u202egnp.exe\\u2066\\u200b\\r\nb"
    )
    assert printable("Größe: 3 µm 👍🏽, 数") == "Größe: 3 µm 👍🏽, 数"


@pytest.mark.long
@pytest.mark.parametrize(
    "command",
    [
        ("lineage",),
        ("lineage", "--json"),
        ("verify", "--json", "--samples", "4", "--heads", "1"),
        ("explain", "SAMPLE"),
        ("explain", "SAMPLE", "--json"),
        ("explain", f"{FILE_NAME}:160"),
        ("explain", f"no {HOSTILE}:3"),
        ("lineage", HOSTILE),
        ("release", HOSTILE),
    ],
    ids=lambda command: " ".join(command)[:20].encode("ascii", "replace").decode(),
)
def test_a_terminal_is_told_nothing_it_obeys(hostile: Hostile, command: tuple[str, ...]) -> None:
    sql = "select sample_id from samples where position = 0"
    [sample_id] = hostile.home.warehouse.query(sql)["sample_id"].to_pylist()
    arguments = [sample_id if word == "SAMPLE" else word for word in command]
    done = circuitseer(hostile.folder, *arguments, NO_COLOR="1", TERM="dumb")
    assert done.returncode in (0, 2), done.stderr
    assert "Traceback" not in done.stderr
    assert not commanding(done.stdout)
    assert not commanding(done.stderr)
    if "--json" in command:
        json.loads(done.stdout)


@pytest.mark.long
def test_no_table_was_dropped_and_every_text_is_kept(hostile: Hostile) -> None:
    sql = "select distinct source from samples"
    assert hostile.home.warehouse.query(sql)["source"].to_pylist() == [FILE_NAME]
    done = circuitseer(hostile.folder, "export", "--json")
    exported = Path(json.loads(done.stdout)["path"]).read_text().splitlines()
    originals = {json.dumps(row, sort_keys=True) for row in rows(160)}
    for line in exported:
        row = json.loads(line)
        kept = {name: row[name] for name in ("prompt", "response", "family", HOSTILE)}
        assert json.dumps(kept, sort_keys=True) in originals


class Page(html.parser.HTMLParser):
    """The tags and the addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


@pytest.mark.long
def test_pages_hold_the_texts_as_text(hostile: Hostile, tmp_path: Path) -> None:
    _, report = find_report(hostile.home, hostile.run.of("audit", "artifact_id"))
    sql = "select sample_id from samples where position = 0"
    [sample_id] = hostile.home.warehouse.query(sql)["sample_id"].to_pylist()
    sample = tmp_path / "sample.html"
    assert circuitseer(hostile.folder, "explain", sample_id, "--html", str(sample)).returncode == 0
    for path in (report, sample):
        text = path.read_text()
        assert "&lt;script&gt;" in text
        page = Page(text)
        assert "img" not in page.tags
        assert page.tags.count("script") <= 1
        assert not any(name.startswith("on") for name, _ in page.attributes)
        assert not any("javascript:" in (value or "") for _, value in page.attributes)
        assert not commanding(text)


@pytest.mark.long
def test_markdown_in_the_ui_shows_characters_alone(hostile: Hostile) -> None:
    shown = [
        (name, str(value.value))
        for name, value in hostile.metadata()
        if isinstance(value, dg.MarkdownMetadataValue)
    ]
    assert any("alert" in text for _, text in shown)
    for name, text in shown:
        assert not commanding(text) - {"U+2060"}, name  # a word joiner of our own
        # Neither an image of numbers nor a block of code is read as markup.
        text = re.sub(r"\(data:image/png;base64,[A-Za-z0-9+/=]*\)", "", text)
        text = re.sub(r"^```text\n.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        assert "<script" not in text, name
        assert "<img" not in text, name
        assert "](javascript" not in text, name
