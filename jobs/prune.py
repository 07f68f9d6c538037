"""Removing what nothing needs: artifacts that are neither new nor in use, with all that is theirs.

The warehouse's rows go first, in one transaction: as an artifact counts once its row is there, it
counts no more from then on. Its files follow, then its run and model in MLflow. What is about to go
is written down before, so that a removal that was killed is finished by the next one.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import dagster as dg

from circuitseer_assets.errors import ArtifactError, HousekeepingError
from circuitseer_assets.method.retention import keep_artifacts
from circuitseer_assets.records import Artifact
from jobs.run import run_job
from jobs.staleness import REPORTS_GROUP, asset_graph_of, kept_fresh
from resources.dead_runs import find_running
from resources.home import Home
from resources.in_use import exported_subset_ids, released_artifact_ids, shown_artifact_ids
from resources.processes import if_free, one_at_a_time
from resources.removal_journal import JOURNAL, Removal, read_journal, write_journal
from resources.tracking_removal import find_models_of, measure_bytes, remove_tracked


@dataclass(frozen=True, slots=True)
class Amount:
    """How many artifacts of a stage, and the size of their files, a checkpoint's weights among it.

    Weights on an MLflow server are not measured.
    """

    count: int = 0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed, or would be, and what stays; `removed` and `kept` by stage."""

    dry_run: bool
    removed: Mapping[str, Amount]
    kept: Mapping[str, Amount]
    num_rows: Mapping[str, int]
    num_mlflow_runs: int
    num_mlflow_models: int
    left: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """Returns all of it as plain JSON values, with the totals."""
        total = sum(amount.num_bytes for amount in self.removed.values())
        count = sum(amount.count for amount in self.removed.values())
        return {**asdict(self), "num_removed": count, "num_bytes_removed": total}


def prune(
    defs: dg.Definitions,
    home: Home,
    *,
    num_newest: int,
    keep_subsets: Sequence[str] = (),
    dry_run: bool = False,
) -> Pruned:
    """Returns what was removed; with `dry_run` what would be, and nothing is.

    What stays: the newest artifacts of each stage, all that assets and their partitions show, what
    is released or exported, `keep_subsets`, and everything these stand on. A removal that was
    killed before is finished. The reports, which are tables, are built anew at the end.

    Raises:
        SettingsError: `num_newest` is below 0.
        ArtifactError: one of `keep_subsets` is no subset's id.
        HousekeepingError: a run is in progress.
        TrackingError: MLflow cannot be reached: what is released is not known then.
    """
    home.set_environment()
    if dry_run:
        removal, begun, kept = _decide(home, num_newest, keep_subsets)
        rows = home.warehouse.remove(removal.artifact_ids, dry_run=True)
        return _describe(home, removal | begun, kept, rows, dry_run=True)
    journal = home.folder / JOURNAL
    with one_at_a_time(home.lock_file("housekeeping"), f"a backup or removal in {home.folder}"):
        with _nothing_running(home):
            removal, begun, kept = _decide(home, num_newest, keep_subsets)
            whole = removal | begun
            if whole != Removal():
                write_journal(journal, whole)
            done = _describe(home, whole, kept, {})
            done = replace(done, num_rows=home.warehouse.remove(removal.artifact_ids))
            for stage, artifact_id in whole.artifacts:
                home.artifacts.remove(stage, artifact_id)
            remove_tracked(home.tracking(), whole.run_ids, whole.model_ids)
        if journal.exists():
            _build_reports(defs, home)
            journal.unlink()
    return done


@contextlib.contextmanager
def _nothing_running(home: Home) -> Iterator[None]:
    """Returns a context in which no run is in progress: one that starts waits for its end.

    Raises:
        HousekeepingError: one is in progress now.
    """
    remedy = "wait for it, or end it in the UI, then prune again"
    with home.pruning(), if_free(home.lock_file("reconcile")) as is_free:
        if not is_free:
            raise HousekeepingError(
                f"nothing may be made in {home.folder} while artifacts are removed, and "
                f"another process is at it; {remedy}"
            )
        with dg.DagsterInstance.get() as instance:
            running = find_running(instance)
        if running:
            raise HousekeepingError(
                f"no run may be in progress in {home.folder} while artifacts are removed, got "
                f"{running[0].run_id} ({running[0].job_name}); {remedy}"
            )
        yield


def _decide(
    home: Home, num_newest: int, keep_subsets: Sequence[str]
) -> tuple[Removal, Removal, list[Artifact]]:
    """Returns what goes, what an earlier removal left behind, and the artifacts that stay."""
    warehouse, tracking = home.warehouse, home.tracking()
    artifacts = warehouse.artifacts()
    _refuse_no_subset(artifacts, keep_subsets)
    with dg.DagsterInstance.get() as instance:
        in_use = shown_artifact_ids(instance)
    in_use |= {*released_artifact_ids(tracking), *exported_subset_ids(home), *keep_subsets}
    ids = keep_artifacts(artifacts, num_newest=num_newest, in_use=in_use)
    kept = [artifact for artifact in artifacts if artifact.artifact_id in ids]
    going = [artifact for artifact in artifacts if artifact.artifact_id not in ids]
    models = warehouse.models_of_checkpoints()
    kept_runs = {artifact.mlflow_run_id for artifact in kept}
    runs = set(warehouse.mlflow_runs_of([artifact.artifact_id for artifact in going])) - kept_runs
    kept_models = {models[i] for i in ids if i in models}
    gone_models = {models[a.artifact_id] for a in going if a.artifact_id in models}
    gone_models |= find_models_of(tracking, runs)
    removal = Removal(
        tuple((artifact.stage, artifact.artifact_id) for artifact in going),
        tuple(sorted(runs)),
        tuple(sorted(gone_models - kept_models)),
    )
    recorded = {artifact.artifact_id for artifact in artifacts}
    all_runs = {artifact.mlflow_run_id for artifact in artifacts}
    begun = read_journal(home.folder / JOURNAL).without(recorded | all_runs | {*models.values()})
    return removal, begun, kept


def _refuse_no_subset(artifacts: Sequence[Artifact], keep_subsets: Sequence[str]) -> None:
    subsets = [artifact.artifact_id for artifact in artifacts if artifact.stage == "subset"]
    for subset_id in keep_subsets:
        if subset_id not in subsets:
            raise ArtifactError(
                f"--keep-subset must be a subset's id, got {subset_id!r}; the latest are: "
                f"{', '.join(reversed(subsets[-5:])) or 'none'}"
            )


def _describe(
    home: Home,
    removal: Removal,
    kept: Sequence[Artifact],
    num_rows: Mapping[str, int],
    *,
    dry_run: bool = False,
) -> Pruned:
    tracking, models = home.tracking(), home.warehouse.models_of_checkpoints()
    stays = [(artifact.stage, artifact.artifact_id) for artifact in kept]
    left = []
    if not tracking.is_file and removal.run_ids:
        left.append(f"the files of MLflow's runs and models: run `mlflow gc` at {tracking.uri}")
    return Pruned(
        dry_run=dry_run,
        removed=_measure(home, removal.artifacts, models),
        kept=_measure(home, stays, models),
        num_rows=num_rows,
        num_mlflow_runs=len(removal.run_ids),
        num_mlflow_models=len(removal.model_ids),
        left=tuple(left),
    )


def _measure(
    home: Home, artifacts: Sequence[tuple[str, str]], models: Mapping[str, str]
) -> dict[str, Amount]:
    amounts: dict[str, Amount] = {}
    for stage, artifact_id in artifacts:
        num_bytes = home.artifacts.num_bytes(stage, artifact_id)
        if artifact_id in models:
            num_bytes += measure_bytes(home.tracking(), models[artifact_id])
        before = amounts.get(stage, Amount())
        amounts[stage] = Amount(before.count + 1, before.num_bytes + num_bytes)
    return amounts


def _build_reports(defs: dg.Definitions, home: Home) -> None:
    """Returns when the reports that were there are built anew: they are tables, and name what went.

    Raises:
        PipelineFailedError: one could not be built, or its test failed.
    """
    graph = asset_graph_of(defs)
    reports = [key for key in kept_fresh(graph) if graph.get(key).group_name == REPORTS_GROUP]
    with dg.DagsterInstance.get() as instance:
        are_there = any(instance.get_latest_materialization_event(key) for key in reports)
    if are_there:
        run_job(defs, home, assets=reports)


PRUNED_COLUMNS = ("stage", "removed", "of", "kept", "of")


def pruned_rows(pruned: Pruned) -> list[tuple[str, ...]]:
    """Returns how much of every stage went and stayed, by `PRUNED_COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for stage in sorted({*pruned.removed, *pruned.kept}):
        gone, stays = pruned.removed.get(stage, Amount()), pruned.kept.get(stage, Amount())
        cells = (str(gone.count), format_bytes(gone.num_bytes))
        rows.append((stage, *cells, str(stays.count), format_bytes(stays.num_bytes)))
    return rows


def describe_pruned(pruned: Pruned) -> str:
    """Returns in words what went altogether, and what is left to do."""
    count = sum(amount.count for amount in pruned.removed.values())
    size = format_bytes(sum(amount.num_bytes for amount in pruned.removed.values()))
    verb = "would remove" if pruned.dry_run else "removed"
    said = (
        f"{verb} {count} artifacts of {size}, {sum(pruned.num_rows.values())} rows, "
        f"{pruned.num_mlflow_runs} MLflow runs and {pruned.num_mlflow_models} models"
    )
    return "\n".join([said, *(f"left: {what}" for what in pruned.left)])


def format_bytes(num_bytes: int) -> str:
    """Returns a size in the largest unit it has at least one of: B, kB, MB, GB or TB."""
    size, units = float(num_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size /= 1000
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
