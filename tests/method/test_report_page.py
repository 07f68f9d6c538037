"""The page: whole in itself, escaped whatever a corpus says, the same twice, honest in words."""

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from circuitseer_assets.method.report import Report
from circuitseer_assets.method.report_page import render_explanation, render_report
from circuitseer_assets.method.report_words import (
    judge_task,
    list_cautions,
    list_heads,
    summarise_what,
)
from circuitseer_assets.settings import ScoringSettings
from tests.reports import HOSTILE, HOSTILE_FILE, make_explanation, make_report


class Page(HTMLParser):
    """Every element with its attributes, and all text outside of style and script."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def attributes(self, tag: str, name: str) -> list[str]:
        return [a[name] or "" for t, a in self.elements if t == tag and name in a]


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module", params=["report", "explanation"])
def html(request: pytest.FixtureRequest, report: Report) -> str:
    if request.param == "report":
        return render_report(report)
    return render_explanation(make_explanation())


def test_every_element_is_closed_and_texts_stay_texts(html: str) -> None:
    page = Page(html)
    assert page.open == []
    assert HOSTILE not in html
    assert HOSTILE_FILE not in html
    text = "".join(page.texts)
    assert HOSTILE in text
    assert HOSTILE_FILE in text
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not [tag for tag, _ in page.elements if tag == "b"]


def test_nothing_is_loaded_and_only_its_own_script_may_run(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "base", "form")
        assert "src" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
    assert all(href.startswith("#") for href in page.attributes("a", "href"))
    assert not re.search(r"url\(|@import|https?://", html)
    [policy] = [p for p in page.attributes("meta", "content") if "default-src" in p]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-[A-Za-z0-9+/=]{44}';", policy)


def test_ids_are_unique_and_links_lead_somewhere(html: str) -> None:
    page = Page(html)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {href[1:] for href in page.attributes("a", "href")} <= set(ids)
    for labelled in page.attributes("section", "aria-labelledby"):
        assert labelled in ids


def test_headings_skip_no_level_and_every_table_has_caption_and_scopes(html: str) -> None:
    page = Page(html)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    for before, level in itertools.pairwise(levels):
        assert level <= before + 1
    tags = [tag for tag, _ in page.elements]
    assert tags.count("caption") == tags.count("table") > 0
    assert all(scope in ("col", "row") for scope in page.attributes("th", "scope"))
    assert len(page.attributes("th", "scope")) == tags.count("th")


def test_the_shown_numbers_have_the_variance_that_is_the_score() -> None:
    explanation = make_explanation()
    page = Page(render_explanation(explanation))
    shown = [float(value) for value in page.attributes("span", "data-a")]
    assert explanation.standing is not None
    mean = sum(shown) / len(shown)
    variance = sum((value - mean) ** 2 for value in shown) / len(shown)
    assert variance == pytest.approx(explanation.standing.score, rel=1e-4)
    assert "".join(page.texts).count("<|user|>") == 1


def test_the_same_report_gives_the_same_page(report: Report) -> None:
    assert render_report(report) == render_report(make_report())


def test_every_head_says_its_interval_and_chosen_ones_are_marked(report: Report) -> None:
    html = render_report(report)
    texts = "".join(Page(html).texts)
    for row in report.ranking.importance:
        assert f"Layer {row.head.layer}, head {row.head.head}: loss rise" in texts
    intervals = re.findall("95 % interval [+\N{MINUS SIGN}]", texts)
    assert len(intervals) == len(report.ranking.importance)
    assert texts.count("not measured") == 1
    assert "Chosen, confirmed on fresh probes" in texts
    assert "Chosen, not confirmed on fresh probes" in texts
    grid = html[html.index("data-grid") : html.index("heat-legend", html.index("data-grid") + 60)]
    assert (grid.count("◆"), grid.count("◇")) == (1, 1)


def test_a_large_model_and_long_prompts_stay_small() -> None:
    report = make_report(num_layers=80, num_heads=64, num_samples=20_000)
    long = [make_explanation(40_000)] * 10
    html = render_report(replace(report, samples={"Highest scores": long}))
    assert len(html.encode()) < 6_000_000
    assert "38,800 more tokens are not shown" in html


def test_what_is_wide_is_called_a_demonstration(report: Report) -> None:
    [task] = report.tasks
    said = judge_task(task)
    assert said.endswith("a demonstration, not evidence.")
    narrow = replace(task.difference, ci_low=-0.01, ci_high=0.02)
    figures = {"ci_low": 0.49, "ci_high": 0.51}
    sure = replace(
        task,
        difference=narrow,
        base=replace(task.base, **figures),
        checkpoint=replace(task.checkpoint, **figures),
    )
    assert judge_task(sure) == "No difference is seen: the interval holds 0."
    more = replace(sure, difference=replace(narrow, ci_low=0.005))
    assert judge_task(more) == "The checkpoint solves more of these problems."
    fewer = replace(sure, difference=replace(narrow, ci_high=-0.005))
    assert judge_task(fewer) == "The checkpoint solves fewer of these problems."


@pytest.mark.parametrize(
    ("scoring", "heads", "summary", "lineage"),
    [
        (
            {},
            ("0.0", "0.1"),
            "by how the attention of 2 chosen heads of 48 falls on their prompts (attention_var",
            "2 chosen heads of 48: 0.0, 0.1 (scoring.heads: reasoning)",
        ),
        (
            {"heads": "all", "span": "response"},
            tuple(f"{layer}.{head}" for layer in range(6) for head in range(8)),
            "by how the attention of all 48 heads falls on their responses (attention_variance)",
            "all 48 heads (scoring.heads: all)",
        ),
        (
            {"heads": "random"},
            ("0.4",),
            "by how the attention of 1 random head of 48 falls on their prompts (attention_vari",
            "1 random head of 48: 0.4 (scoring.heads: random)",
        ),
        (
            {"scorer": "attention_influence", "heads": "retrieval"},
            ("2.3", "3.1"),
            "by the scorer attention_influence, which uses 2 retrieval heads of 48, and",
            "2 retrieval heads of 48: 2.3, 3.1 (scoring.heads: retrieval)",
        ),
        ({"scorer": "length"}, (), "by the scorer length, and", "none, for the scorer length"),
    ],
)
def test_the_heads_are_those_that_the_scores_are_of(
    report: Report, scoring: dict[str, str], heads: tuple[str, ...], summary: str, lineage: str
) -> None:
    scores = replace(report.scores, scoring=ScoringSettings(**scoring), heads=heads)
    scored = replace(report, scores=scores)
    assert summary in summarise_what(scored)
    assert lineage in list_heads(scored)
    text = "".join(Page(render_report(scored)).texts)
    assert f"The heads read: {list_heads(scored)}." in text
    assert summary in text


def test_cautions_name_length_unconfirmed_heads_and_a_draw_like_chance(report: Report) -> None:
    one, length, heads, draw = list_cautions(report)
    assert "make study" in one
    assert "rank correlation \N{MINUS SIGN}0.80" in length
    assert "1 chosen head not confirmed on fresh probes: 0.1." in heads
    assert "not told from a random one" in draw
