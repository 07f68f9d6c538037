"""The audit's page in a browser: readable for all, on a phone, by keyboard, in both colours.

What it needs besides Chromium comes with the development tools; where it lacks, the tests skip.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from circuitseer_assets.method.report_page import render_explanation, render_report
from tests.reports import make_explanation, make_report

PHONE, DESK = {"width": 375, "height": 812}, {"width": 1280, "height": 900}
# Of a cell's colours as they are drawn; a canvas knows what any way of writing a colour means.
CONTRASTS = """
selector => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colour, below) => {
    canvas.fillStyle = below; canvas.fillRect(0, 0, 1, 1);
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => c.map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const paper = element => {
    for (let one = element; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (colour !== "rgba(0, 0, 0, 0)") return [colour, one.parentElement];
    }
    return ["white", null];
  };
  return [...document.querySelectorAll(selector)].map(element => {
    const [own, above] = paper(element);
    const below = above ? paper(above)[0] : "white";
    const [a, b] = [light(rgb(own, below)), light(rgb(getComputedStyle(element).color, "white"))];
    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  });
}
"""


def axe_script() -> str:
    """Returns the source of axe-core, which comes with a package."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("axe-playwright-python is not installed")
    return Path(found.origin).with_name("axe.min.js").read_text()


@pytest.fixture(scope="module", params=["tiny", "large", "explanation"])
def page_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of a small model, of one with 28 x 28 heads, or of one sample."""
    path: Path = tmp_path_factory.mktemp("pages") / "page.html"
    if request.param == "explanation":
        path.write_text(render_explanation(make_explanation()))
    else:
        size = {"tiny": (6, 8), "large": (28, 28)}[request.param]
        path.write_text(render_report(make_report(*size)))
    return path


def open_page(browser: Any, file: Path, **options: Any) -> Any:
    page = browser.new_context(**{"viewport": DESK, **options}).new_page()
    page.set_default_timeout(10_000)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: problems.append(m.text) if m.type != "log" else None)
    page.on("request", lambda r: problems.append(r.url) if r.url != file.as_uri() else None)
    page.on("dialog", lambda dialog: problems.append(dialog.message))
    page.goto(file.as_uri())
    page.problems = problems
    return page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
def test_axe_finds_nothing(browser: Any, page_file: Path, scheme: str, viewport: Any) -> None:
    options = {"color_scheme": scheme, "viewport": viewport, "bypass_csp": True}
    page = open_page(browser, page_file, **options)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    page.add_script_tag(content=axe_script())
    found = page.evaluate("axe.run().then(results => results.violations)")
    assert [(one["impact"], one["id"], one["nodes"][0]["html"]) for one in found] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_on_shades_can_be_read(browser: Any, page_file: Path, scheme: str) -> None:
    page = open_page(browser, page_file, color_scheme=scheme)
    contrasts = page.evaluate(CONTRASTS, "[data-grid] td:not(.none), .t, .off")
    assert len(contrasts) > 5
    assert min(contrasts) >= 4.5


def test_it_loads_nothing_runs_no_text_and_has_no_fault(browser: Any, page_file: Path) -> None:
    page = open_page(browser, page_file)
    assert page.problems == []
    assert page_file.stat().st_size < 6_000_000


@pytest.mark.parametrize("is_open", [False, True])
def test_a_phone_scrolls_in_one_direction(browser: Any, page_file: Path, is_open: bool) -> None:
    page = open_page(browser, page_file, viewport=PHONE)
    page.evaluate(f"document.querySelectorAll('details').forEach(one => one.open = {int(is_open)})")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_the_first_tab_skips_to_the_content(browser: Any, page_file: Path) -> None:
    page = open_page(browser, page_file)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_every_stop_of_the_keyboard_is_seen(browser: Any, page_file: Path) -> None:
    page = open_page(browser, page_file)
    seen = 0
    for _ in range(60):
        page.keyboard.press("Tab")
        name, outline = page.evaluate(
            "[document.activeElement].flatMap(e => [e.tagName, getComputedStyle(e).outlineStyle])"
        )
        if name == "BODY":
            break
        assert outline != "none"
        seen += 1
    assert seen >= 3


def test_the_colours_can_be_changed(browser: Any, page_file: Path) -> None:
    page = open_page(browser, page_file, color_scheme="light")
    button = page.get_by_role("button", name="Dark colours")
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.evaluate(paper) != light
    page.keyboard.press("Enter")
    assert page.evaluate(paper) == light


def test_arrow_keys_go_from_head_to_head_and_each_shows_its_interval(
    browser: Any, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    file.write_text(render_report(make_report()))
    page = open_page(browser, file)
    assert page.locator("[data-grid] td[tabindex='0']").count() == 1
    page.locator("[data-grid] td[tabindex='0']").focus()

    def told() -> str:
        tip = page.locator("[data-grid] td:focus .tip")
        box = tip.bounding_box()
        assert box["width"] > 200  # shown, not only there
        text: str = tip.inner_text()
        return text

    assert told().startswith("Layer 0, head 0:")
    page.keyboard.press("ArrowRight")
    assert told().startswith("Layer 1, head 0:")
    page.keyboard.press("ArrowDown")
    assert told().startswith("Layer 1, head 1:")
    assert "95 % interval" in told()
    page.keyboard.press("End")
    assert told().startswith("Layer 5, head 1:")
    page.keyboard.press("ArrowRight")  # stays at the edge
    page.keyboard.press("ArrowUp")
    assert told().startswith("Layer 5, head 0:")
    assert page.locator("[data-grid] td[tabindex='0']").count() == 1

    page.locator("[data-grid] td").first.hover()
    assert page.locator("[data-grid] td:hover .tip").inner_text().startswith("Layer 0, head 0:")
    assert not page.locator("[data-grid] td:focus .tip").is_visible()
