"""The running UIs as a person uses them: make the graph, look at plots, lineage, run and report.

With SCREENSHOTS=FOLDER, as `make screenshots` has it, the pages are kept as pictures.
"""

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from circuitseer_assets.records import STAGES
from resources.home import Home
from tests.conftest import small_settings, write_settings
from tests.test_cli import CIRCUITSEER

pytestmark = pytest.mark.long

SCREENSHOTS = os.environ.get("SCREENSHOTS")
DESK, PHONE = {"width": 1280, "height": 960}, {"width": 375, "height": 812}
# What people would fold away, or turn, to see more of a page; MLflow's opens once by itself.
DAGSTER_LOOK = {"dagster-nav-collapsed": "true", "asset-graph-direction": '"vertical"'}
MLFLOW_LOOK = {"mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true"}
START_S, RUN_S = 600, 1200  # on a machine that does much else
PATIENCE_MS = 120_000  # MLflow's pages take a minute on a busy machine
# MLflow's own page asks which user is logged in, and a server without accounts knows of none.
_ABSENT = ("/ajax-api/2.0/mlflow/users/current",)


def free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return int(trial.getsockname()[1])


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        assert server.poll() is None, "circuitseer dev ended"
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(1)
        else:
            return
    raise AssertionError(f"{url} does not answer")


def listen_to(page: Any, problems: list[str]) -> None:
    """Adds whatever goes wrong on the page to `problems`."""

    def hear(message: Any) -> None:
        # What could not be loaded is told with its address by the two below.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            problems.append(f"{page.url}: {message.text}")

    def look_at(response: Any) -> None:
        if response.status >= 400 and not any(one in response.url for one in _ABSENT):
            problems.append(f"{page.url}: {response.status} {response.url}")

    def miss(request: Any) -> None:
        # Whoever leaves a page aborts what it was still asking for.
        if request.failure != "net::ERR_ABORTED":
            problems.append(f"{page.url}: {request.failure} {request.url}")

    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))
    page.on("console", hear)
    page.on("response", look_at)
    page.on("requestfailed", miss)


@dataclass
class Served:
    """Both UIs on a home of its own, and the one page that looks at them."""

    home: Home
    dagster: str
    mlflow: str
    page: Any
    problems: list[str] = field(default_factory=list)

    def listen_to(self, page: Any) -> None:
        page.set_default_timeout(PATIENCE_MS)
        listen_to(page, self.problems)

    def open(self, path: str) -> None:
        self.page.goto(self.dagster + path)

    def keep(self, name: str) -> None:
        if SCREENSHOTS:
            self.page.wait_for_timeout(5000)  # what loads or fades has come to rest
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png")


@pytest.fixture(scope="module")
def served(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("home")
    write_settings(folder, small_settings())
    ports = free_port(), free_port()
    log = folder / "dev.log"
    with log.open("wb") as said:
        server = subprocess.Popen(
            [CIRCUITSEER, "dev", "--dagster-port", str(ports[0]), "--mlflow-port", str(ports[1])],
            env={**os.environ, "CIRCUITSEER_HOME": str(folder)},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
        dagster, mlflow = (f"http://127.0.0.1:{port}" for port in ports)
        try:
            for url in (f"{dagster}/server_info", f"{mlflow}/health"):
                wait_for(url, server)
            looks = [(dagster, DAGSTER_LOOK), (mlflow, MLFLOW_LOOK)]
            remembered = {"cookies": [], "origins": [_stored(*look) for look in looks]}
            page = browser.new_context(viewport=DESK, storage_state=remembered).new_page()
            served = Served(Home.prepared(folder), dagster, mlflow, page)
            served.listen_to(page)
            yield served
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(timeout=60)


def _stored(origin: str, values: dict[str, str]) -> dict[str, Any]:
    storage = [{"name": name, "value": value} for name, value in values.items()]
    return {"origin": origin, "localStorage": storage}


def test_a_refused_a_blocked_and_a_broken_request_are_heard(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<script src=absent.js></script>")
    refused = f"http://127.0.0.1:{free_port()}/"
    page, problems = browser.new_context().new_page(), []
    listen_to(page, problems)
    page.goto((tmp_path / "page.html").as_uri())
    page.evaluate("url => fetch(url, {mode: 'no-cors'}).catch(() => 0)", refused)
    page.route("**/blocked", lambda route: route.abort("blockedbyclient"))
    page.evaluate("url => fetch(url + 'blocked').catch(() => 0)", refused)
    said = "\n".join(problems)
    for name in ("ERR_FILE_NOT_FOUND", "ERR_CONNECTION_REFUSED", "ERR_BLOCKED_BY_CLIENT"):
        assert said.count(f"net::{name}") == 1, said


def test_the_graph_is_made_from_the_audits_page(served: Served) -> None:
    served.open("/assets/audit?view=lineage&lineageScope=upstream&lineageDepth=20")
    served.page.get_by_role("button", name=re.compile(r"Materialize all \(9\)")).click()
    served.page.get_by_text(re.compile(r"Launch(ed|ing) run", re.IGNORECASE)).first.wait_for()
    end = time.monotonic() + RUN_S
    while "Success" not in (said := _runs(served)):
        assert "Failure" not in said
        assert time.monotonic() < end, said
        time.sleep(5)
    stages = {artifact.stage for artifact in served.home.warehouse.artifacts()}
    assert set(STAGES) <= stages
    served.open("/assets/audit?view=lineage&lineageScope=upstream&lineageDepth=20")
    served.page.get_by_text("head_ranking", exact=True).first.wait_for()
    served.page.locator("button:has([aria-label='zoom_out'])").click()  # its fit cuts the lowest
    served.keep("lineage")
    assert served.problems == []


def _runs(served: Served) -> str:
    served.open("/runs")
    served.page.get_by_role("link", name="audit").or_(
        served.page.get_by_text(re.compile("Success|Failure|Started|Queued|Starting"))
    ).first.wait_for()
    return str(served.page.locator("body").inner_text())


def test_the_graph_shows_every_stage_as_a_group(served: Served) -> None:
    shown = quote('not (group:"study" or group:"sweep")', safe="()")
    served.open(f"/asset-groups~{shown}/")
    served.page.locator("button:has([aria-label='panel_show_right'])").click()
    for stage in (*STAGES, "settings", "dbt_models"):
        served.page.get_by_text(stage, exact=True).first.wait_for()
    served.keep("asset_graph")
    assert served.problems == []


def test_an_assets_page_shows_columns_and_its_plot(served: Served) -> None:
    served.open("/assets/head_ranking")
    served.page.get_by_text("delta_loss_nats").first.wait_for()
    served.keep("asset_page")
    served.page.get_by_text("heat_map_md").scroll_into_view_if_needed()
    row = served.page.get_by_role("row").filter(has_text="heat_map_md")
    row.get_by_text("[Show Markdown]").click()
    plot = served.page.get_by_role("img", name="head importance, layer by head")
    plot.wait_for()
    assert plot.evaluate("image => image.naturalWidth") > 500
    shown, room = plot.bounding_box(), served.page.get_by_role("dialog").bounding_box()
    assert shown["x"] + shown["width"] <= room["x"] + room["width"]
    served.keep("head_ranking")
    assert served.problems == []


def test_a_checkpoint_leads_to_its_run_in_mlflow_and_the_run_back(served: Served) -> None:
    served.open("/assets/checkpoint")
    link = served.page.locator(f"a[href^='{served.mlflow}']").first
    link.wait_for()
    url = str(link.get_attribute("href"))
    [checkpoint] = [a for a in served.home.warehouse.artifacts() if a.stage == "checkpoint"]
    assert url.endswith(f"/runs/{checkpoint.mlflow_run_id}")
    served.page.goto(url)
    served.page.get_by_text(checkpoint.artifact_id).first.wait_for()
    described = served.page.get_by_test_id("note-editor-preview-content")
    described.get_by_text("subset: subset-").wait_for()
    served.keep("mlflow_run")
    asset = described.get_by_role("link", name="checkpoint")
    assert asset.get_attribute("href") == f"{served.dagster}/assets/checkpoint"
    with served.page.expect_popup() as opened:
        described.get_by_role("link", name="Dagster run").click()
    run = opened.value
    served.listen_to(run)
    run.get_by_text("Success").first.wait_for()
    assert run.url == f"{served.dagster}/runs/{checkpoint.dagster_run_id}"
    run.close()
    assert served.problems == []


def test_the_report_opens_from_the_audits_page_and_can_be_clicked_through(served: Served) -> None:
    from playwright.sync_api import expect

    served.open("/assets/audit")
    link = served.page.locator(f"a[href^='{served.mlflow}'][href$='report.html']").first
    link.wait_for()
    with served.page.expect_popup() as opened:
        link.click()
    shown = opened.value
    served.listen_to(shown)
    report = shown.frame_locator("iframe")  # MLflow shows a page within its own
    links = report.locator("nav a[href^='#']")
    links.first.wait_for()
    for i in range(links.count()):
        links.nth(i).click()
        target = report.locator(str(links.nth(i).get_attribute("href")))
        expect(target).to_be_focused()
        expect(target).to_be_in_viewport()
    shown.close()
    assert served.problems == []


def test_the_reports_file_opens_alone_and_on_a_phone(served: Served) -> None:
    [audit] = [a for a in served.home.warehouse.artifacts() if a.stage == "audit"]
    file = served.home.artifacts.folder("audit", audit.artifact_id) / "report.html"
    served.page.goto(file.as_uri())
    served.keep("report")
    links = served.page.locator("nav a[href^='#']")
    assert links.count() >= 5
    for i in range(links.count()):
        links.nth(i).click()
        target = str(links.nth(i).get_attribute("href"))
        assert served.page.url.endswith(target)
        assert served.page.locator(target).is_visible()
    for summary in served.page.locator("details > summary").all():
        if summary.is_visible():  # one within another shows once that is open
            summary.click()
    served.page.set_viewport_size(PHONE)
    served.page.emulate_media(color_scheme="dark")
    served.page.evaluate("scrollTo(0, 0)")
    served.keep("report_phone")
    assert served.problems == []
