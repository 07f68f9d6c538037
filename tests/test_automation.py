"""Conditions, sensors and schedules: what the daemon asks for, and how often."""

import contextlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitseer_assets import definitions
from circuitseer_assets.errors import AlertError, SettingsError
from circuitseer_assets.settings import AutomationSettings, Columns, HubCorpus
from jobs import automation
from jobs.run import PipelineFailedError, observe_now, run_job
from jobs.staleness import REPORTS_GROUP, asset_graph_of, kept_fresh, next_frontier
from resources import alerts
from resources.home import Home
from tests.conftest import Reconciled, small_settings, write_settings

Tick = Callable[[], set[str]]


# conditions, on the real graph --------------------------------------------------------------------


@pytest.fixture
def settled(reconciled: Reconciled) -> Reconciled:
    """A home on its own settings in which nothing is stale."""
    reconciled.change()
    return reconciled


@pytest.fixture
def tick(settled: Reconciled) -> Tick:
    """What a tick of the daemon asks for, after one that has seen everything fresh."""
    cursor: Any = None
    keys = asset_graph_of(settled.defs).materializable_asset_keys

    def evaluate() -> set[str]:
        nonlocal cursor
        observe_now(settled.home)
        with dg.DagsterInstance.get() as instance:
            result = dg.evaluate_automation_conditions(settled.defs, instance, cursor=cursor)
        cursor = result.cursor
        return {key.to_user_string() for key in keys if result.get_requested_partitions(key)}

    assert evaluate() == set()
    return evaluate


def make(settled: Reconciled, names: set[str]) -> None:
    run_job(settled.defs, settled.home, assets=[dg.AssetKey(name) for name in names])


@pytest.mark.long
def test_ten_ticks_with_nothing_changed_ask_for_nothing(tick: Tick) -> None:
    assert [tick() for _ in range(10)] == [set()] * 10


@pytest.mark.long
def test_another_base_model_asks_for_exactly_its_dependants_once_each(
    tick: Tick, settled: Reconciled, other_model: Path, tmp_path: Path
) -> None:
    # Three stages depend on it directly: the later ones have to wait for the earlier.
    model = AutoModelForCausalLM.from_pretrained(other_model)
    model.model.norm.weight.data *= 1.001  # nobody's but this test's: the home is shared
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(other_model).save_pretrained(tmp_path)
    settled.write(base_model={"source": "local", "path": str(tmp_path)})
    asked: list[set[str]] = []
    while names := tick():
        asked.append(names)
        assert tick() == set(), "asked twice for the same reason"
        make(settled, names)
    stages = ["head_ranking", "sample_scores", "subset", "checkpoint", "evaluation", "audit"]
    assert asked == [{stage} for stage in stages]


@pytest.mark.long
def test_a_failure_is_tried_once_more_and_never_a_third_time(
    tick: Tick, settled: Reconciled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise SettingsError("the draw must work, and does not; mend it")

    monkeypatch.setattr(definitions.subset, "draw_subset", fail)
    settled.write(selection={"seed": 105})
    for _ in range(2):
        assert tick() == {"subset"}
        with pytest.raises(PipelineFailedError, match="the draw must work"):
            make(settled, {"subset"})
        assert tick() == set()
    assert [tick() for _ in range(5)] == [set()] * 5
    settled.write(selection={"seed": 106})  # another cause is another try
    assert tick() == {"subset"}


@pytest.mark.long
def test_a_subset_that_fails_its_check_is_not_built_upon_by_the_daemon(
    tick: Tick, settled: Reconciled, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = definitions.subset.draw_subset
    monkeypatch.setattr(
        definitions.subset, "draw_subset", lambda pool, selection: draw(pool, selection).slice(1)
    )
    settled.write(selection={"seed": 107})
    assert tick() == {"subset"}
    with pytest.raises(PipelineFailedError, match="subset_is_the_budget"):
        make(settled, {"subset"})
    asked = set().union(*(tick() for _ in range(4)))
    assert asked <= {"subset"}


@pytest.mark.long
def test_a_change_right_after_a_request_is_asked_for_as_well(
    tick: Tick, settled: Reconciled
) -> None:
    settled.write(selection={"seed": 108})
    assert tick() == {"subset"}
    make(settled, {"subset"})
    settled.write(selection={"seed": 109})  # seen together with the request's own echo
    asked = [tick() for _ in range(4)]
    assert asked.count({"subset"}) == 1
    assert asked.count(set()) == 3


def test_reports_come_last_and_all_at_once(home_folder: Path) -> None:
    graph = asset_graph_of(definitions.make_definitions(Home.prepared(home_folder)))
    everything = set(kept_fresh(graph))
    reports = {key for key in everything if graph.get(key).group_name == REPORTS_GROUP}
    stages = everything - reports
    assert next_frontier(graph, everything) == {dg.AssetKey("corpus")}
    assert next_frontier(graph, reports | {dg.AssetKey("audit")}) == {dg.AssetKey("audit")}
    some = {dg.AssetKey("stg_artifacts")}
    assert some < next_frontier(graph, some) <= reports
    assert not next_frontier(graph, some) & stages


# sensors and schedules ----------------------------------------------------------------------------


def test_conditions_sensors_and_schedules_are_off_until_switched_on(
    home_folder: Path,
) -> None:
    defs = definitions.make_definitions(Home.prepared(home_folder))
    on = {sensor.name for sensor in defs.sensors if sensor.default_status.value == "RUNNING"}
    assert on == {"observe_settings"}
    assert {sensor.name: sensor.minimum_interval_seconds for sensor in defs.sensors} == {
        "observe_settings": 30,
        "make_cheap_stages": 30,
        "make_expensive_stages": 60,
        "recurate_on_new_data": 300,
        "alert_on_failure": 60,
    }
    assert {schedule.default_status.value for schedule in defs.schedules} == {"STOPPED"}
    graph = defs.resolve_asset_graph()
    stages = set(kept_fresh(graph))
    targeted = {
        key
        for sensor in (automation.make_cheap_stages, automation.make_expensive_stages)
        for key in sensor.asset_selection.resolve(graph)
    }
    assert targeted == stages
    assert all(graph.get(key).automation_condition is not None for key in stages)
    assert graph.get(dg.AssetKey("subset")).freshness_policy is not None


class Looks:
    """One sensor looked at again and again, with its cursor kept."""

    def __init__(self, home: Home, instance: dg.DagsterInstance) -> None:
        self.home, self.instance, self.cursor = home, instance, None

    def __call__(self) -> dg.SensorResult:
        context = dg.build_sensor_context(instance=self.instance, cursor=self.cursor)
        result: Any = automation.recurate_on_new_data(context, home=self.home)
        self.cursor = result.cursor
        return result


@pytest.fixture
def corpus_file(tmp_path: Path) -> Path:
    path = tmp_path / "corpus" / "a.jsonl"
    path.parent.mkdir()
    path.write_text('{"prompt": "1 + 1?", "response": "2"}\n')
    return path


@pytest.fixture
def looks(corpus_file: Path, tmp_path: Path) -> Iterator[Looks]:
    values = small_settings()
    values["corpus"] = {
        "source": "files",
        "paths": [str(corpus_file.parent / "*.jsonl")],
        "columns": {"prompt": "prompt", "response": "response"},
    }
    folder = tmp_path / "home"
    folder.mkdir()
    write_settings(folder, values)
    with dg.instance_for_test() as instance:
        yield Looks(Home.prepared(folder), instance)


def test_new_data_starts_one_run_once_it_no_longer_changes(looks: Looks, corpus_file: Path) -> None:
    assert not looks().run_requests  # seen for the first time
    assert looks().run_requests  # and the same again: nothing was read from it yet
    for _ in range(3):
        assert not looks().run_requests
    with corpus_file.open("a") as file:
        file.write('{"prompt": "2 + 2?", "response": "4"}\n')
    assert not looks().run_requests
    corpus_file.with_name("b.jsonl").write_text('{"prompt": "3 + 3?", "response": "6"}\n')
    assert not looks().run_requests  # still being written
    assert looks().run_requests
    assert not looks().run_requests


@pytest.mark.parametrize(
    ("pinned", "said"),
    [
        ("a" * 40, "which is the newest on the hub"),
        ("b" * 40, f"set corpus.revision to {'a' * 40}"),
    ],
)
def test_newer_data_on_the_hub_is_said_and_stays_unused(
    hub: str, monkeypatch: pytest.MonkeyPatch, pinned: str, said: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub)
    columns = Columns(prompt="prompt", response="response")
    corpus = HubCorpus(source="hub", repo_id="someone/sums", revision=pinned, columns=columns)
    assert said in automation._newer_on_the_hub(corpus)
    missing = corpus.model_copy(update={"repo_id": "someone/nothing"})
    assert "is not known: corpus.repo_id must name" in automation._newer_on_the_hub(missing)


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub that knows one data set."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = "/api/datasets/someone/sums" in self.path
            body = json.dumps({"id": "someone/sums", "sha": "a" * 40} if known else {}).encode()
            self.send_response(200 if known else 404)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with serving(Answer) as address:
        yield address


@contextlib.contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@pytest.mark.long
def test_data_that_the_corpus_was_read_from_starts_nothing(settled: Reconciled) -> None:
    with dg.DagsterInstance.get() as instance:
        looks = Looks(settled.home, instance)
        for _ in range(3):
            assert "very data" in (looks().skip_reason.skip_message or "")


@pytest.mark.long
def test_the_backstop_asks_for_what_a_reconciliation_would_make_next(
    settled: Reconciled,
) -> None:
    [_, backstop] = automation.make_schedules(AutomationSettings())

    def asked() -> Any:
        with dg.DagsterInstance.get() as instance:
            context = dg.build_schedule_context(
                instance=instance,
                repository_def=settled.defs.get_repository_def(),
                resources={"home": settled.home},
            )
            return backstop(context)

    assert isinstance(asked(), dg.SkipReason)
    settled.write(training={"max_steps": 17})
    observe_now(settled.home)
    assert asked().asset_selection == [dg.AssetKey("checkpoint")]


@pytest.mark.parametrize("wrong", [{"recurate_cron": "every day"}, {"timezone": "Mars/Olympus"}])
def test_a_wrong_schedule_is_refused_in_one_sentence(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="correct them in the settings"):
        automation.make_schedules(AutomationSettings(**wrong))


# alerts -------------------------------------------------------------------------------------------


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """The address of a server that keeps what it is told, and answers as the path asks."""
    told: list[Any] = []

    class Keep(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            # /503/200: first the one, then the other; the last for good.
            asked = self.path.strip("/").split("/")
            answer = asked[min(len(told), len(asked)) - 1] or "200"
            if answer != "silence":
                self.send_response(int(answer))
                self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with serving(Keep) as address:
        yield address, told


def test_a_failed_run_is_told_to_the_webhook(
    webhook: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, told = webhook

    @dg.op
    def fails() -> None:
        raise ValueError("no such thing")

    @dg.job
    def failing() -> None:
        fails()

    sensor = automation.make_alert_sensor(AutomationSettings())
    with dg.instance_for_test() as instance:
        result = failing.execute_in_process(instance=instance, raise_on_error=False)
        context = dg.build_run_status_sensor_context(
            sensor_name="alert_on_failure",
            dagster_event=result.get_run_failure_event(),
            dagster_instance=instance,
            dagster_run=result.dagster_run,
        ).for_run_failure()
        monkeypatch.delenv("CIRCUITSEER_FAILURE_WEBHOOK", raising=False)
        assert "is not set" in (sensor(context).skip_message or "")
        monkeypatch.setenv("CIRCUITSEER_FAILURE_WEBHOOK", address)
        assert sensor(context) is None
    [message] = told
    assert result.run_id in message["text"]
    assert "failing" in message["text"]


@pytest.mark.parametrize(("answers", "num_tries"), [("200", 1), ("503/200", 2), ("500/429/200", 3)])
def test_a_webhook_that_fails_for_a_moment_is_told_all_the_same(
    webhook: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    answers: str,
    num_tries: int,
) -> None:
    monkeypatch.setattr(alerts, "PAUSES_S", (0.01, 0.01))
    address, told = webhook
    alerts.post_alert(f"{address}/{answers}", "hello")
    assert told == [{"text": "hello"}] * num_tries


@pytest.mark.parametrize(
    ("answers", "said", "num_tries"),
    [
        ("503", "it answered 503", 3),
        ("404/200", "it answered 404", 1),
        ("silence/200", "without response", 1),  # it may have been taken: once is enough
    ],
)
def test_a_webhook_is_tried_three_times_and_one_that_refuses_once(
    webhook: tuple[str, list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    answers: str,
    said: str,
    num_tries: int,
) -> None:
    monkeypatch.setattr(alerts, "PAUSES_S", (0.01, 0.01))
    address, told = webhook
    with pytest.raises(AlertError, match=said):
        alerts.post_alert(f"{address}/{answers}", "hello")
    assert len(told) == num_tries


@pytest.mark.parametrize(
    "wrong",
    [
        "ftp://127.0.0.1/x-secret",
        "x-secret",
        "{address}/404",
        "{address}/x secret",
        "http://h:secret",
    ],
)
def test_a_webhook_that_takes_nothing_is_an_error_that_keeps_the_secret(
    webhook: tuple[str, list[Any]], wrong: str
) -> None:
    with pytest.raises(AlertError, match="failure webhook") as error:
        alerts.post_alert(wrong.format(address=webhook[0]), "hello")
    assert "secret" not in str(error.value)
    assert webhook[0] not in str(error.value)
