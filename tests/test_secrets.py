"""No secret of the environment is written anywhere, whatever fails and whoever repeats it."""

import base64
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.scheduler.instigation import InstigatorType, TickData, TickStatus
from dagster_shared.error import SerializableErrorInfo

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.redaction import (
    RedactedStream,
    holds_credentials,
    is_secret_name,
    redact,
    redact_logs,
)
from circuitseer_assets.settings import PROJECT_ROOT, load_settings, parse_settings
from resources.home import Home
from resources.tracking import Tracking
from resources.training_process import LOG_FILE, PARENT_VARIABLE, REQUEST_FILE
from tests.conftest import small_settings, write_settings

# A value an environment may hold, with what JSON and addresses spell otherwise.
CANARIES = {
    "HF_TOKEN": "hf_canary_of_the_hub",
    "MLFLOW_TRACKING_PASSWORD": 'canary "of" \\MLflow/é',
    "PGPASSWORD": "canary-of-postgres",
    "CIRCUITSEER_FAILURE_WEBHOOK": "http://127.0.0.1:9/services/canary-of-the-webhook",
}


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)


# what is a secret ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CANARIES, "MLFLOW_TRACKING_TOKEN", "AWS_SECRET_ACCESS_KEY"])
def test_a_name_says_that_its_variable_holds_a_secret(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["HOME", "TOKENIZERS_PARALLELISM", "KEYBOARD", "HF_TOKEN_PATH"])
def test_other_variables_hold_none(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize("value", CANARIES.values(), ids=CANARIES)
def test_a_secret_is_hidden_however_it_is_spelt(secrets: None, value: str) -> None:
    from urllib.parse import quote

    for spelt in (value, quote(value, safe=""), json.dumps(value)[1:-1]):
        assert redact(f"before {spelt} after") == "before *** after"


def test_an_error_that_names_a_part_of_a_secret_address_hides_it(secrets: None) -> None:
    said = "Max retries exceeded with url: /services/canary-of-the-webhook (refused)"
    assert redact(said) == "Max retries exceeded with url: *** (refused)"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("https://me:pass@host/a", "https://***@host/a"),
        ("postgresql://me:p@ss@host", "postgresql://***@host"),
        ("https://token@host", "https://***@host"),
        ("write to someone@example.org", "write to someone@example.org"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ('{"at": "http://host\\nwrite@once"}', '{"at": "http://host\\nwrite@once"}'),
    ],
)
def test_what_an_address_holds_before_its_host_is_hidden(text: str, kept: str) -> None:
    assert redact(text) == kept


def test_a_short_value_and_an_empty_one_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("PGPASSWORD", "subset")
    assert redact("the subset is drawn") == "the subset is drawn"


# settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:canary@mlflow.example.org",
        "https://canary@mlflow.example.org",
        "postgresql+psycopg2://me:canary@db/mlflow",
        "postgresql://db/mlflow?user=me&password=canary",
    ],
)
def test_settings_refuse_an_address_with_a_password_and_do_not_repeat_it(uri: str) -> None:
    assert holds_credentials(uri)
    values = {**small_settings(), "execution": {"mlflow_tracking_uri": uri}}
    with pytest.raises(SettingsError) as refused:
        parse_settings(values, origin="circuitseer.yaml")
    said = str(refused.value)
    assert said.startswith("execution.mlflow_tracking_uri must hold no password")
    assert "MLFLOW_TRACKING_PASSWORD" in said
    assert "PGPASSWORD" in said
    assert "canary" not in said
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("place", ["key", "list", "unknown"])
def test_settings_refuse_it_wherever_it_stands(place: str) -> None:
    uri = "https://me:canary@host"
    corpus = {"source": "files", "paths": ["a.jsonl", uri]}
    more: dict[str, Any] = {"key": {uri: 1}, "list": {"corpus": corpus}, "unknown": {"new": uri}}
    with pytest.raises(SettingsError, match="must hold no password") as refused:
        parse_settings({**small_settings(), **more[place]}, origin="circuitseer.yaml")
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "uri", ["http://mlflow:5000", "sqlite:///a.db", "postgresql://mlflow@db:5432/mlflow"]
)
def test_settings_take_an_address_without_one(uri: str) -> None:
    values = {**small_settings(), "execution": {"mlflow_tracking_uri": uri}}
    parsed = parse_settings(values, origin="circuitseer.yaml")
    assert parsed.execution.mlflow_tracking_uri == uri


def test_presets_hold_no_secret() -> None:
    for path in [PROJECT_ROOT / "circuitseer.yaml", *(PROJECT_ROOT / "presets").glob("*.yaml")]:
        load_settings(path)


def test_the_webhooks_variable_must_be_one_whose_value_is_hidden() -> None:
    values = {**small_settings(), "automation": {"failure_webhook_variable": "SLACK"}}
    with pytest.raises(SettingsError, match="must name a variable that ends in _WEBHOOK"):
        parse_settings(values, origin="circuitseer.yaml")


# where things are written -------------------------------------------------------------------------


def test_a_stream_and_a_log_hold_no_secret(secrets: None, tmp_path: Path) -> None:
    before = logging.getLogRecordFactory()
    logger = logging.getLogger("somebody's library")
    handler = logging.FileHandler(tmp_path / "log")
    logger.addHandler(handler)
    try:
        redact_logs()
        redact_logs()
        logger.error("asked with %s", CANARIES["HF_TOKEN"])
        try:
            raise OSError(CANARIES["PGPASSWORD"])
        except OSError:
            logger.exception("could not connect to %d", 1)
        logger.error("no secret: %s of %d", "1", 2)
    finally:
        logging.setLogRecordFactory(before)
        logger.removeHandler(handler)
        handler.close()
    with (tmp_path / "stream").open("w") as file:
        print("token:", CANARIES["HF_TOKEN"], file=RedactedStream(file))  # type: ignore[arg-type]
    written = (tmp_path / "log").read_text()
    assert "asked with ***" in written
    assert "OSError: ***" in written
    assert "no secret: 1 of 2" in written
    assert (tmp_path / "stream").read_text() == "token: ***\n"


def test_the_log_of_a_training_process_holds_none(secrets: None, tmp_path: Path) -> None:
    # It is refused with a trace, which repeats the value that cannot be.
    refused = {**small_settings(), "preset": f"The {CANARIES['HF_TOKEN']}"}
    (tmp_path / REQUEST_FILE).write_text(json.dumps({"settings": refused}))
    done = subprocess.run(
        [sys.executable, "-m", "resources.training_process", str(tmp_path)],
        cwd=PROJECT_ROOT,
        env={**os.environ, PARENT_VARIABLE: str(os.getpid())},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    (tmp_path / REQUEST_FILE).unlink()
    assert "SettingsError: preset: " in (tmp_path / LOG_FILE).read_text()
    assert_clean(tmp_path, done.stdout + done.stderr)


def test_mlflow_is_given_no_secret(secrets: None, tmp_path: Path) -> None:
    tracking = Tracking(f"sqlite:///{tmp_path}/mlflow.db", artifact_root=tmp_path / "files")
    with tracking.run("a", {"tag": f"of {CANARIES['HF_TOKEN']}", "none": None}) as run:
        run.log_params({"training": {"note": CANARIES["PGPASSWORD"], "seed": 1}})
    stored = tracking.client().get_run(run.run_id).data
    assert stored.params == {"training.note": "***", "training.seed": "1"}
    assert stored.tags["tag"] == "of ***"
    assert_clean(tmp_path, "")


def test_a_tick_that_failed_is_stored_without_it(
    secrets: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Home.prepared(tmp_path)
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "dagster"))
    before = logging.getLogRecordFactory()
    error = SerializableErrorInfo(f"not taken: {CANARIES['HF_TOKEN']}", [], "AlertError")
    with dg.DagsterInstance.get() as instance:
        data = TickData(
            "o", "alert", InstigatorType.SENSOR, TickStatus.STARTED, 0.0, selector_id="s"
        )
        tick = instance.create_tick(data)
        instance.update_tick(tick.with_status(TickStatus.FAILURE, error=error))
        [stored] = instance.get_ticks("o", "s")
    logging.setLogRecordFactory(before)
    assert stored.error is not None
    assert stored.error.message == "not taken: ***"
    assert_clean(home.folder, "")


# everything at once -------------------------------------------------------------------------------


class Telltale(BaseHTTPRequestHandler):
    """A server that refuses everything, and repeats the login it was given."""

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        kind, _, given = self.headers.get("authorization", "").partition(" ")
        login = base64.b64decode(given).decode() if kind == "Basic" else given
        said = f"you are not {login}"
        content = json.dumps({"error_code": "BAD_REQUEST", "message": said, "error": said})
        self.send_response(400)
        self.send_header("content-length", str(len(content)))
        self.send_header("X-Error-Message", said.encode("ascii", "replace").decode())
        self.end_headers()
        self.wfile.write(content.encode())

    do_GET = do_POST = do_HEAD = answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def telltale() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Telltale) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


PROGRAM = """
import logging, os, sys
import dagster as dg
from circuitseer_assets import cli
from circuitseer_assets.settings import HubModel
from jobs.run import run_job
from resources.alerts import post_alert
from resources.home import Home
from resources.model_files import find_model_folder

@dg.asset
def asks_mlflow(home: Home) -> None:
    with home.tracking().run("a"):
        pass

@dg.asset
def asks_the_hub(home: Home) -> None:
    find_model_folder(HubModel(source="hub", repo_id="a/b", revision="1" * 40))

@dg.asset
def tells_the_webhook(home: Home) -> None:
    post_alert(os.environ["CIRCUITSEER_FAILURE_WEBHOOK"], os.environ["HF_TOKEN"])

@dg.asset
def asks_the_database(context: dg.AssetExecutionContext, home: Home) -> None:
    password = os.environ["PGPASSWORD"]
    logging.getLogger("circuitseer").info("with %s", password)
    context.log.info(f"with {password}")
    context.add_output_metadata({"with": password})
    print("with", password)
    logging.getLogger("urllib3").warning("with %s", os.environ["CIRCUITSEER_FAILURE_WEBHOOK"])
    try:
        raise OSError(f"no answer from postgresql://me:{password}@db")
    except OSError as error:
        raise ValueError(f"cannot connect as {password}") from error

home = Home.prepared()
assets = [asks_mlflow, asks_the_hub, tells_the_webhook, asks_the_database]
defs = dg.Definitions(assets, jobs=[dg.define_asset_job("all")], resources={"home": home},
                      executor=dg.in_process_executor)
cli.app = lambda: run_job(defs, home, "all")
cli.main() if sys.argv[1] == "guarded" else cli.app()
"""


def run_program(folder: Path, server: str, how: str) -> tuple[int, str]:
    folder.mkdir()
    write_settings(folder, {**small_settings(), "execution": {"mlflow_tracking_uri": server}})
    home = Home.prepared(folder)
    if how == "bare":
        configured = folder / "dagster/dagster.yaml"
        values = yaml.safe_load(configured.read_text())
        del values["instance_class"]
        configured.write_text(yaml.safe_dump(values))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how],
        cwd=PROJECT_ROOT,
        env={
            **os.environ,
            "CIRCUITSEER_HOME": str(home.folder),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
            "MLFLOW_TRACKING_USERNAME": "me",
            "HF_HUB_OFFLINE": "0",
            "HF_ENDPOINT": server,
            "HF_HOME": str(folder / "hub"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout + done.stderr


def written(folder: Path, said: str) -> bytes:
    files = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert files
    return b"\n".join([said.encode(), *files])


def assert_clean(folder: Path, said: str) -> None:
    everything = written(folder, said)
    assert b"canary" not in everything
    assert rb"\u00e9" not in everything


@pytest.mark.long
def test_a_home_in_which_everything_failed_holds_no_secret(
    secrets: None, tmp_path: Path, telltale: str
) -> None:
    status, said = run_program(tmp_path / "guarded", telltale, "guarded")
    assert status == 2, said
    assert "***" in said
    assert_clean(tmp_path / "guarded", said)
    # Let through by Dagster, the same failures store them: the search would have found them. (The
    # webhook's address is in no message, and a run's streams are guarded in either case.)
    _, said = run_program(tmp_path / "bare", telltale, "bare")
    leaked = written(tmp_path / "bare", said)
    for canary in (b"hf_canary_of_the_hub", b"MLflow/", b"canary-of-postgres"):
        assert canary in leaked, canary
