"""The installation of deploy/compose.yaml as processes of this machine: its commands, its files.

A container's address becomes a loopback port, its volume a temporary folder; nothing else differs.
"""

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster
import pytest
import urllib3
import yaml

from circuitseer_assets.settings import PROJECT_ROOT, SLICES
from resources.home import Home
from resources.tracking import Tracking
from tests.conftest import small_settings, write_settings
from tests.deploy.services import (
    DEPLOY,
    LOOPBACK,
    PASSWORDS,
    Postgres,
    fill_in,
    free_port,
    nginx_server,
    postgres_server,
    program,
    running,
    wait_for_port,
    wait_until,
)

pytestmark = pytest.mark.long

LOGIN = "ada", "correct horse"
NAMES = {"DAGSTER_NAME": "dagster.test", "MLFLOW_NAME": "localhost"}
RUN_STATUS = "query($id: ID!) {runOrError(runId: $id) {... on Run {status}}}"
LAUNCH = """
mutation($chosen: ExecutionParams!) {
  launchPipelineExecution(executionParams: $chosen) {
    __typename
    ... on LaunchRunSuccess {run {runId}}
    ... on PythonError {message}
  }
}
"""


@dataclass(frozen=True)
class Site:
    """The installation, as seen from before its proxy."""

    postgres: Postgres
    home: Home
    folder: Path
    port: int
    mlflow_port: int

    def ask(
        self,
        path: str,
        *,
        name: str = NAMES["DAGSTER_NAME"],
        method: str = "GET",
        login: tuple[str, str] | None = LOGIN,
        body: Any = None,
        **headers: str,
    ) -> urllib3.BaseHTTPResponse:
        """The proxy's answer; headers are named with _ for -."""
        sent = {named.replace("_", "-"): value for named, value in headers.items()}
        if login is not None:
            sent |= urllib3.make_headers(basic_auth=":".join(login))
        with urllib3.HTTPSConnectionPool(
            LOOPBACK,
            self.port,
            server_hostname=name,
            assert_hostname=name,
            ca_certs=str(self.folder / "tls.crt"),
            retries=False,
            timeout=60,
        ) as pool:
            host = {"Host": f"{name}:{self.port}"}
            return pool.request(method, path, headers=sent | host, json=body)

    def graphql(self, query: str, **variables: Any) -> Any:
        body = {"query": query, "variables": variables}
        return self.ask("/graphql", method="POST", body=body).json()["data"]


def service(name: str, variables: Mapping[str, str], places: Mapping[str, str]) -> list[str]:
    """A service's command in the compose file, with its places on this machine."""
    text = (DEPLOY / "compose.yaml").read_text().replace(":?}", "}")
    services = yaml.safe_load(text)["services"]
    words = [fill_in(word, variables) for word in services[name]["command"]]
    for there, here in places.items():
        words = [word.replace(there, here) for word in words]
    return [program(words[0]), *words[1:]]


def keep_secrets(folder: Path) -> None:
    """Makes tls.crt, tls.key and htpasswd by the commands of deploy/README.md."""
    commands = [
        line.strip()
        for line in (DEPLOY / "README.md").read_text().splitlines()
        if line.strip().startswith("openssl ")
    ]
    assert len(commands) == 2
    environment = {"PATH": os.environ["PATH"], "LOGIN": LOGIN[0], "PASSWORD": LOGIN[1], **NAMES}
    for command in commands:
        subprocess.run(["sh", "-ec", command], cwd=folder, env=environment, check=True, timeout=60)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("private")
    home = tmp_path_factory.mktemp("home")
    code, web, mlflow = (free_port() for _ in range(3))
    settings = small_settings()
    settings["execution"] = {"mlflow_tracking_uri": f"http://{LOOPBACK}:{mlflow}"}
    write_settings(home, settings)
    keep_secrets(folder)
    places = {
        "0.0.0.0": LOOPBACK,
        "/opt/circuitseer": str(PROJECT_ROOT),
        "/srv/mlflow": str(folder / "mlflow"),
        "4000": str(code),
        "3000": str(web),
        "5000": str(mlflow),
        # One worker each is enough here.
        "--workers=2": "--workers=1",
    }
    workspace = folder / "workspace.yaml"
    workspace.write_text((DEPLOY / "workspace.yaml").read_text().replace("4000", str(code)))
    places[str(PROJECT_ROOT / "deploy/workspace.yaml")] = str(workspace)
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(postgres_server())
        shared = {
            **postgres.environment,
            "CIRCUITSEER_HOME": str(home),
            "DAGSTER_HOME": str(home / "dagster"),
            "CODE_HOST": LOOPBACK,
        }
        tracking = {
            "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg2://mlflow@{LOOPBACK}:{postgres.port}/mlflow",
            "PGPASSWORD": PASSWORDS["MLFLOW_POSTGRES_PASSWORD"],
        }

        logs = {name: folder / f"{name}.log" for name in ("mlflow", "code", "webserver", "daemon")}

        def start(name: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
            command = service(name, NAMES, places)
            return stack.enter_context(running(command, logs[name], **environment))

        mlflow_server, code_server = start("mlflow", tracking), start("code", shared)
        wait_for_port(code_server, code, logs["code"])  # it prepares the home for the other two
        webserver = start("webserver", shared)
        start("daemon", shared)
        wait_for_port(webserver, web, logs["webserver"])
        wait_for_port(mlflow_server, mlflow, logs["mlflow"])
        upstreams = {
            "DAGSTER_UPSTREAM": f"{LOOPBACK}:{web}",
            "MLFLOW_UPSTREAM": f"{LOOPBACK}:{mlflow}",
        }
        port = stack.enter_context(nginx_server(folder, NAMES | upstreams))
        yield Site(postgres, Home(path=str(home)), folder, port, mlflow)


def test_a_run_launched_through_the_proxy_is_queued_made_and_kept_in_postgresql(
    site: Site,
) -> None:
    observed = """
        select count(distinct asset_key) from event_logs
        where dagster_event_type = 'ASSET_OBSERVATION'
    """
    # By the daemon's own sensor: an asset is not made from settings that nobody observed.
    wait_until(
        lambda: site.postgres.query(observed) == [(len(SLICES),)],
        site.folder / "daemon.log",
        limit_s=180,
    )
    chosen = {
        "selector": {
            "repositoryName": "__repository__",
            "repositoryLocationName": "circuitseer",
            "pipelineName": "__ASSET_JOB",
            "assetSelection": [{"path": ["corpus"]}],
        }
    }
    launched = site.graphql(LAUNCH, chosen=chosen)["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run_id = launched["run"]["runId"]

    def is_over() -> bool:
        status = site.graphql(RUN_STATUS, id=run_id)["runOrError"]["status"]
        return status in {"SUCCESS", "FAILURE", "CANCELED"}

    wait_until(is_over, site.folder / "daemon.log", limit_s=180)
    [(status,)] = site.postgres.query(f"select status from runs where run_id = '{run_id}'")
    assert status == "SUCCESS", (site.folder / "code.log").read_text()[-3000:]
    events = site.postgres.query(
        f"select dagster_event_type from event_logs where run_id = '{run_id}'"
    )
    assert {"PIPELINE_ENQUEUED", "PIPELINE_STARTING", "ASSET_MATERIALIZATION"} <= {
        kind for (kind,) in events
    }
    assert site.home.warehouse.latest_artifacts("corpus")


@pytest.mark.parametrize("name", NAMES.values())
@pytest.mark.parametrize("login", [None, ("ada", "wrong"), ("eve", LOGIN[1])])
def test_nobody_without_the_login_gets_past_the_proxy(
    site: Site, name: str, login: tuple[str, str] | None
) -> None:
    for path in ("/", "/graphql", "/server_info", "/api/2.0/mlflow/experiments/search"):
        refused = site.ask(path, name=name, login=login)
        assert refused.status == 401
        assert refused.headers["WWW-Authenticate"].startswith("Basic")


def test_with_the_login_both_uis_answer(site: Site) -> None:
    assert site.ask("/server_info").json()["dagster_version"] == dagster.__version__
    page = site.ask("/")
    assert (page.status, page.headers["X-Frame-Options"]) == (200, "DENY")
    assert b"MLflow" in site.ask("/", name=NAMES["MLFLOW_NAME"]).data


def test_a_name_that_is_not_served_gets_no_answer_at_all(site: Site) -> None:
    with pytest.raises(urllib3.exceptions.SSLError, match="unrecognized name"):
        site.ask("/", name="elsewhere.test")


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ("GET", {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"}, 403),
        ("POST", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 403),
        ("POST", {"Origin": "https://elsewhere.test"}, 403),
        ("POST", {"Origin": "null"}, 403),
        ("POST", {"Origin": "https://dagster.test:{port}.elsewhere.test"}, 403),
        ("POST", {"Origin": "https://dagster.test:{port}"}, 200),
        ("POST", {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"}, 200),
        ("GET", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
        ("GET", {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"}, 200),
    ],
)
def test_another_sites_page_cannot_use_the_login_that_a_browser_remembers(
    site: Site, method: str, headers: dict[str, str], status: int
) -> None:
    # Dagster answers queries in the address, whatever the method: so the proxy has to refuse.
    sent = {name: value.replace("{port}", str(site.port)) for name, value in headers.items()}
    assert site.ask("/graphql?query={version}", method=method, **sent).status == status


def test_dagsters_pages_are_told_through_the_proxy_what_happens(site: Site) -> None:
    answer = site.ask(
        "/graphql",
        Connection="Upgrade",
        Upgrade="websocket",
        Sec_WebSocket_Version="13",
        Sec_WebSocket_Key="dGhlIHNhbXBsZSBub25jZQ==",
        Sec_WebSocket_Protocol="graphql-ws",
    )
    assert answer.status == 101
    # What every WebSocket server answers to this key (RFC 6455, 1.3).
    assert answer.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_mlflow_keeps_runs_in_postgresql_and_files_in_its_volume(site: Site) -> None:
    tracking = site.home.tracking()
    report = site.folder / "report.txt"
    report.write_text("kept")
    with tracking.run("a run", {"artifact_id": "audit-0"}) as run:
        run.log_metrics(1, {"loss": 0.5})
    tracking.log_file(run.run_id, report, "audit")
    stored = site.postgres.query(
        f"select key, value from metrics where run_uuid = '{run.run_id}'", role="mlflow"
    )
    assert stored == [("loss", 0.5)]
    [kept] = (site.folder / "mlflow").rglob("report.txt")
    assert kept.read_text() == "kept"


def test_mlflow_is_reached_from_elsewhere_through_the_proxy_by_name_and_password(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(site.folder / "tls.crt"))
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", LOGIN[0])
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", LOGIN[1])
    large = tmp_path / "weights.bin"
    large.write_bytes(os.urandom(3 * 2**20))  # above nginx's own limit of 1 MiB
    outside = Tracking(f"https://localhost:{site.port}")
    with outside.run("from elsewhere") as run:
        pass
    outside.log_file(run.run_id, large, "weights")
    [kept] = (site.folder / "mlflow").rglob("weights.bin")
    assert kept.read_bytes() == large.read_bytes()


def test_links_lead_to_where_people_reach_mlflow(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = site.home.tracking()
    with tracking.run("a link") as run:
        pass
    assert run.url.startswith(f"http://{LOOPBACK}:{site.mlflow_port}/#/")
    monkeypatch.setenv("CIRCUITSEER_MLFLOW_UI", "https://mlflow.example.org")
    assert run.url == (
        f"https://mlflow.example.org/#/experiments/{run.experiment_id}/runs/{run.run_id}"
    )


def test_mlflow_refuses_a_name_that_is_not_its_own(site: Site) -> None:
    with urllib3.HTTPConnectionPool(LOOPBACK, site.mlflow_port, retries=False) as pool:
        body = json.dumps({"name": "planted"})
        sent = {"Host": "rebound.test", "Content-Type": "application/json"}
        path = "/api/2.0/mlflow/experiments/create"
        assert pool.request("POST", path, headers=sent, body=body).status == 403
