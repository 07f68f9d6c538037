"""When Dagster's daemon makes something by itself: conditions, schedules and sensors.

All of them are off until somebody switches them on. What they make is stale as `reconcile` sees it,
with nothing stale above it: nothing is trained on a subset that is about to change.
"""

import datetime
import os
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import dagster as dg

from circuitseer_assets.assets.stage import latest_artifact
from circuitseer_assets.errors import ArtifactError, CorpusError, SettingsError
from circuitseer_assets.settings import AutomationSettings, CorpusSettings, HubCorpus
from jobs.full_pipeline import curate, full_pipeline
from jobs.staleness import find_stale, frontier_of, next_frontier
from resources.alerts import post_alert
from resources.corpora import newest_revision
from resources.home import Home

EXPENSIVE = ("head_ranking", "sample_scores", "checkpoint", "evaluation")
CHEAP = ("corpus", "probe_set", "pool", "subset", "audit")

# conditions ---------------------------------------------------------------------------------------

_frontiers: WeakKeyDictionary[Any, frozenset[dg.AssetKey]] = WeakKeyDictionary()


class NextToMake(dg.AutomationCondition[dg.AssetKey]):
    """The asset is stale and nothing above it is, by the same staleness as `make run`.

    Dagster's own conditions look one level up: a changed base model would at once train on the old
    subset, and again on the new one.
    """

    @property
    def name(self) -> str:
        """The condition's name in the UI."""
        return "next_to_make"

    @property
    def description(self) -> str:
        """The condition's description in the UI."""
        return "Out of date, and nothing above it is"

    def evaluate(
        self, context: dg.AutomationContext[dg.AssetKey]
    ) -> dg.AutomationResult[dg.AssetKey]:
        """Returns the asset if it is on the frontier."""
        view = context.asset_graph_view
        if view not in _frontiers:  # once a tick, for all assets
            stale = find_stale(view.instance, view.asset_graph, Home.prepared())
            _frontiers[view] = frozenset(frontier_of(view.asset_graph, stale))
        on_it = context.key in _frontiers[view]
        subset = context.candidate_subset if on_it else context.get_empty_subset()
        return dg.AutomationResult(context, subset)


def _condition() -> dg.AutomationCondition[dg.AssetKey]:
    is_next = NextToMake()
    changed = (
        is_next.newly_true()
        | dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
        | dg.AutomationCondition.code_version_changed()
    )
    # What becomes true together with `requested` would be reset with it: it is kept for a tick.
    requested = dg.AutomationCondition.newly_requested()
    missed = (changed & requested).since(~requested)
    # The first failure after a change is tried once more; the second waits for another change.
    failed = (dg.AutomationCondition.execution_failed() & ~requested).newly_true()
    retry = failed.since(changed).newly_true()
    return (
        (changed | retry | (~missed).newly_true()).since(requested)
        & is_next
        & ~dg.AutomationCondition.in_progress()
        & ~dg.AutomationCondition.any_deps_in_progress()
    ).with_label("out of date, nothing above it is, and not yet requested for that")


WHEN_OUT_OF_DATE = _condition()


def automated(assets: Sequence[Any], settings: AutomationSettings) -> list[dg.AssetsDefinition]:
    """Returns the assets as the daemon has to know them: when to make each, how old it may be."""

    def annotate(spec: dg.AssetSpec) -> dg.AssetSpec:
        spec = spec.replace_attributes(automation_condition=WHEN_OUT_OF_DATE)
        if spec.key == dg.AssetKey("subset"):
            age = datetime.timedelta(days=settings.max_subset_age_days)
            policy = dg.FreshnessPolicy.time_window(fail_window=age, warn_window=age * 0.9)
            spec = spec.replace_attributes(freshness_policy=policy)
        return spec

    return [definition.map_asset_specs(annotate) for definition in assets]


make_cheap_stages = dg.AutomationConditionSensorDefinition(
    "make_cheap_stages",
    target=dg.AssetSelection.assets(*CHEAP) | dg.AssetSelection.groups("dbt_models"),
    minimum_interval_seconds=30,
    use_user_code_server=True,
    description="Makes corpus, probes, subset, audit and reports again when they are out of date.",
)
make_expensive_stages = dg.AutomationConditionSensorDefinition(
    "make_expensive_stages",
    target=dg.AssetSelection.assets(*EXPENSIVE),
    minimum_interval_seconds=60,
    use_user_code_server=True,
    description="Ranks, scores, trains and evaluates again when that is out of date.",
)

# schedules ----------------------------------------------------------------------------------------


def make_schedules(settings: AutomationSettings) -> list[dg.ScheduleDefinition]:
    """Returns the re-curation's schedule and the backstop's.

    Raises:
        SettingsError: a cron string or the time zone is none.
    """
    try:
        return [_recurate(settings), _backstop(settings)]
    except dg.DagsterInvalidDefinitionError as error:
        raise SettingsError(
            f"automation's recurate_cron and backstop_cron must be cron strings of five fields, "
            f"and timezone the name of a time zone, got {settings.recurate_cron!r}, "
            f"{settings.backstop_cron!r} and {settings.timezone!r}; correct them in the settings"
        ) from error


def _recurate(settings: AutomationSettings) -> dg.ScheduleDefinition:
    return dg.ScheduleDefinition(
        name="recurate",
        job=curate,
        cron_schedule=settings.recurate_cron,
        execution_timezone=settings.timezone,
        description="Corpus to subset; what exists already is reused, not computed.",
    )


def _backstop(settings: AutomationSettings) -> dg.ScheduleDefinition:
    @dg.schedule(
        job=full_pipeline,
        cron_schedule=settings.backstop_cron,
        execution_timezone=settings.timezone,
        description="Makes what is out of date while nothing above it is, also what failed twice.",
    )
    def backstop(
        context: dg.ScheduleEvaluationContext, home: Home
    ) -> dg.RunRequest | dg.SkipReason:
        repository = context.repository_def
        assert repository is not None, "a schedule is evaluated inside its code location"
        graph = repository.asset_graph
        stale = find_stale(context.instance, graph, home)
        if not stale:
            return dg.SkipReason("nothing is out of date")
        return dg.RunRequest(asset_selection=sorted(next_frontier(graph, stale.keys())))

    return backstop


# sensors ------------------------------------------------------------------------------------------


@dg.sensor(
    job=curate,
    minimum_interval_seconds=300,
    description="Starts `curate` when the corpus's files or pinned revision are other than before.",
)
def recurate_on_new_data(context: dg.SensorEvaluationContext, home: Home) -> dg.SensorResult:
    """Returns a run for data that the corpus was not read from, once.

    The data has to be the same in two looks, one interval apart: a file may just be being written.
    The cursor holds the version last seen, and whether a run was requested for it.
    """
    version = home.slice_version("corpus")
    seen, _, requested = (context.cursor or "").partition(" ")
    if version == _version_read(context.instance, home):
        news = _newer_on_the_hub(home.settings().corpus)
        return _no_run(f"the corpus was read from this very data{news}", version)
    if version != seen:
        return _no_run(
            "the data changed; if it is the same at the next look, a run starts", version
        )
    if requested:
        return _no_run("a run was already requested for this data", f"{version} requested")
    return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=f"{version} requested")


def _newer_on_the_hub(corpus: CorpusSettings) -> str:
    """Returns what to say of a commit newer than the pinned one, which stays pinned."""
    if not isinstance(corpus, HubCorpus):
        return ""
    try:
        newest = newest_revision(corpus)
    except CorpusError as error:
        return f"; whether the hub has newer data is not known: {error}"
    if newest == corpus.revision:
        return ", which is the newest on the hub"
    return f"; the hub has newer data: set corpus.revision to {newest} to use it"


def _no_run(reason: str, cursor: str) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=cursor)


def _version_read(instance: dg.DagsterInstance, home: Home) -> str | None:
    """Returns the version of the data that the latest corpus was read from, None without one."""
    try:
        return str(latest_artifact(instance, home, "corpus").settings["version"])
    except ArtifactError:
        return None


def make_alert_sensor(settings: AutomationSettings) -> dg.SensorDefinition:
    """Returns the sensor that tells a webhook of every failed run."""

    @dg.run_failure_sensor(
        monitor_all_code_locations=True,  # the runs of a terminal belong to none
        minimum_interval_seconds=60,
        description="Posts every failed run to the webhook that the environment names.",
    )
    def alert_on_failure(context: dg.RunFailureSensorContext) -> dg.SkipReason | None:
        address = os.environ.get(settings.failure_webhook_variable)
        if not address:
            return dg.SkipReason(
                f"the variable {settings.failure_webhook_variable} must hold a webhook's address, "
                f"and is not set; set it where the daemon starts"
            )
        run = context.dagster_run
        post_alert(
            address,
            f"CircuitSeer: run {run.run_id} of {run.job_name} failed: "
            f"{context.failure_event.message or 'no message'}",
        )
        return None

    return alert_on_failure
