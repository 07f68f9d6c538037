"""How every stage becomes an artifact: look it up, else make it, and say which of the two it was.

An asset states its identity and hands over a function; nothing here knows any stage.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from circuitseer_assets.assets.tables import table_of
from circuitseer_assets.errors import ArtifactError, StaleSettingsError
from circuitseer_assets.records import Artifact, ModelUse, artifact_id_of
from circuitseer_assets.settings import Settings
from resources.artifacts import MANIFEST, digest_file
from resources.artifacts import data_version_of as version_of_files
from resources.home import Home
from resources.processes import one_at_a_time
from resources.record_rows import artifact_cost_rows, artifact_evidence_rows
from resources.tracking import TrackedRun
from resources.tracking_recovery import PROCESS_TAG, end_abandoned, end_recorded, process_tag
from resources.warehouse_rows import FileRows

SUMMARY_FILE = "summary.json"
log = logging.getLogger("circuitseer")


@dataclass(frozen=True)
class Made:
    """What making an artifact gave besides its files.

    `data` names the files or folders whose content is the artifact's data version. `summary` is
    in the UI: a key that ends with `_md` is Markdown, `_url` a link. `rows` are the warehouse's,
    committed together with the artifact; those in files lie inside its folder. `model_use` is what
    was asked of a model, where one was.
    """

    data: Sequence[str]
    summary: Mapping[str, Any] = field(default_factory=dict)
    rows: Mapping[str, pa.Table | FileRows] = field(default_factory=dict)
    mlflow_run_id: str | None = None
    model_use: ModelUse | None = None


@dataclass(frozen=True)
class Materialised:
    """An artifact, and whether it was there already."""

    artifact: Artifact
    folder: Path
    reused: bool

    @property
    def summary(self) -> dict[str, Any]:
        """What is shown of the artifact."""
        loaded: dict[str, Any] = json.loads((self.folder / SUMMARY_FILE).read_text())
        return loaded


class WouldComputeError(Exception):
    """A planned stage finds nothing to reuse: materialised, it would compute."""

    def __init__(self, artifact_id: str) -> None:
        super().__init__(artifact_id)
        self.artifact_id = artifact_id


@dataclass(frozen=True)
class StageRun:
    """One stage at work, or only planned: its settings, its parents and its store.

    `parents` are the artifacts that the upstream assets last materialised, by the asset's name.
    Without a `dagster_run_id` the stage is planned: it goes as far as it finds what it needs.
    `asset` and `partition` are what Dagster is materialising, and `context` is what it gives, for
    whoever starts a process; `own_keys` are those of assets that a cell has of its own, by the
    stage's name.
    """

    home: Home
    settings: Settings
    parents: Callable[[str], Artifact]
    dagster_run_id: str | None
    asset: str | None = None
    partition: str | None = None
    own_keys: Mapping[str, dg.AssetKey] = field(default_factory=dict)
    context: dg.AssetExecutionContext | None = None
    _until_recorded: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @classmethod
    def of(cls, context: dg.AssetExecutionContext, home: Home, *slices: str) -> "StageRun":
        """Returns the run of a materialisation that reads these settings slices.

        Raises:
            StaleSettingsError: a slice is not what was last observed of it.
        """
        for name in slices:
            _ensure_observed(context.instance, home, name)

        def find_parent(name: str) -> Artifact:
            return latest_artifact(context.instance, home, name)

        run_id, asset = context.run.run_id, _asset_of(context)
        return cls(home, home.settings(), find_parent, run_id, asset, context=context)

    @classmethod
    def of_cell(
        cls,
        context: dg.AssetExecutionContext,
        home: Home,
        group: str,
        changes: Mapping[str, Any],
        partitions: Mapping[str, str],
        *slices: str,
    ) -> "StageRun":
        """Returns the run of one cell of a group of cells.

        Args:
            context: of the materialisation.
            home: where the run is.
            group: which the cell is of.
            changes: the settings slices that this cell has of its own, as plain JSON values.
            partitions: the partition of each parent that is the group's, by the stage's name; the
                other parents are the graph's own.
            slices: those it reads and has from the settings file.

        Raises:
            StaleSettingsError: one of these is not what was last observed of it.
        """
        for name in slices:
            _ensure_observed(context.instance, home, name)
        cell = home.changed(**changes)
        own_keys = {name: dg.AssetKey([group, name]) for name in partitions}

        def find_parent(name: str) -> Artifact:
            key = own_keys.get(name, dg.AssetKey(name))
            return latest_artifact(context.instance, home, key, partitions.get(name))

        return cls(
            cell,
            cell.settings(),
            find_parent,
            context.run.run_id,
            _asset_of(context),
            context.partition_key,
            own_keys,
            context,
        )

    @classmethod
    def planned(cls, home: Home, parents: Mapping[str, Artifact]) -> "StageRun":
        """Returns the run of a stage that is only planned, with these parents."""
        return cls(home, home.settings(), parents.__getitem__, None)

    def parent(self, name: str) -> Artifact:
        """Returns the artifact that an upstream asset last materialised.

        Raises:
            ArtifactError: the asset was never materialised, or its artifact is gone.
        """
        artifact = self.parents(name)
        self.home.artifacts.verify(artifact.stage, artifact.artifact_id)
        return artifact

    def key_of(self, name: str) -> dg.AssetKey:
        """Returns the key of an asset above, the cell's own where it has one."""
        return self.own_keys.get(name, dg.AssetKey.from_user_string(name))

    def ancestor(self, artifact: Artifact, stage: str) -> Artifact:
        """Returns the nearest ancestor of `artifact` that is of another stage.

        Raises:
            ArtifactError: it has none.
        """
        level = [artifact]
        while level:
            parents = [self.home.warehouse.find_artifact(i) for a in level for i in a.parents]
            level = [parent for parent in parents if parent is not None]
            for ancestor in level:
                if ancestor.stage == stage:
                    return ancestor
        raise ArtifactError(f"{artifact.artifact_id} must have an ancestor of stage {stage}")

    def folder(self, artifact: Artifact) -> Path:
        """Returns the folder the artifact's files lie in."""
        return self.home.artifacts.folder(artifact.stage, artifact.artifact_id)

    def reuse_or_make(
        self,
        stage: str,
        identity: Mapping[str, Any],
        parents: Sequence[Artifact],
        make: Callable[[Path], Made],
        *,
        code_version: str,
        also_from: Sequence[Artifact] = (),
        still_whole: Callable[[Path], bool] | None = None,
    ) -> Materialised:
        """Returns the artifact with this identity: the stored one if it is whole, else a new one.

        `also_from` are parents that follow from the others, and so are no part of the identity.
        `still_whole` is asked of a stored artifact whose content lies partly outside the store.
        """
        ids = [parent.artifact_id for parent in parents]
        artifact_id = artifact_id_of(stage, identity, ids, code_version)
        ids += [parent.artifact_id for parent in also_from]

        def find() -> Materialised | None:
            found = self.reuse(artifact_id, stage)
            return found if found and (still_whole is None or still_whole(found.folder)) else None

        if found := find():
            if self.dagster_run_id is not None and found.artifact.mlflow_run_id is not None:
                end_recorded(self.home.tracking(), found.artifact.mlflow_run_id)
            return found
        self.stop_if_planned(artifact_id)
        with one_at_a_time(self.home.lock_file(artifact_id), artifact_id), self._until_recorded:
            # Whoever was at work on it before may have made it meanwhile.
            return find() or self._make(stage, artifact_id, identity, ids, make, code_version)

    def _make(
        self,
        stage: str,
        artifact_id: str,
        identity: Mapping[str, Any],
        parents: Sequence[str],
        make: Callable[[Path], Made],
        code_version: str,
    ) -> Materialised:
        # Files without a row, or no longer whole: were they left, they would win over the new ones.
        self.home.artifacts.remove(stage, artifact_id)
        started = time.monotonic()
        with self.home.artifacts.write(stage, artifact_id) as folder:
            made = make(folder)
            summary = {**made.summary, "duration_s": round(time.monotonic() - started, 2)}
            (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=1))
        folder = self.home.artifacts.folder(stage, artifact_id)
        version = data_version_of(folder, made.data)
        artifact = Artifact(
            artifact_id=artifact_id,
            stage=stage,
            data_version=version,
            parents=tuple(parents),
            settings=identity,
            code_version=code_version,
            dagster_run_id=self.dagster_run_id,
            mlflow_run_id=made.mlflow_run_id,
        )
        base_model = self.settings.slice("base_model") if "model_digest" in identity else None
        made_rows = {
            table: rows.inside(folder) if isinstance(rows, FileRows) else rows
            for table, rows in made.rows.items()
        }
        costs = artifact_cost_rows(artifact_id, summary["duration_s"], made.model_use)
        manifest = digest_file(folder / MANIFEST)
        evidence = artifact_evidence_rows(artifact_id, manifest, base_model)
        self.home.warehouse.record(
            artifact, {**made_rows, "artifact_costs": costs, "artifact_evidence": evidence}
        )
        shutil.rmtree(self.work_folder(artifact_id), ignore_errors=True)
        log.info("%s: made %s in %.1f s", stage, artifact_id, time.monotonic() - started)
        return Materialised(artifact, self.folder(artifact), reused=False)

    def work_folder(self, artifact_id: str) -> Path:
        """Returns where unfinished work on an artifact is kept, until the artifact is recorded."""
        return self.home.folder / "work" / artifact_id

    def mlflow_tags(self, artifact_id: str) -> dict[str, str | None]:
        """Returns the tags that lead from MLflow back to what a run or a model was made for."""
        return {
            "dagster_run_id": self.dagster_run_id,
            "dagster_asset": self.asset,
            "dagster_partition": self.partition,
            "artifact_id": artifact_id,
        }

    def track(
        self, artifact_id: str, tags: Mapping[str, str | None], *, name: str | None = None
    ) -> TrackedRun:
        """Returns an MLflow run in which an artifact is made; it ends when that is recorded.

        Not before: whatever dies meanwhile leaves a run that is seen to have come to nothing. Those
        of earlier attempts are ended first.
        """
        tracking = self.home.tracking()
        end_abandoned(tracking, artifact_id)
        run = tracking.run(name or artifact_id, {**tags, PROCESS_TAG: process_tag()})
        return self._until_recorded.enter_context(run)

    def stop_if_planned(self, artifact_id: str) -> None:
        """Returns if the stage is at work.

        Raises:
            WouldComputeError: the stage is only planned, and the artifact is not there.
        """
        if self.dagster_run_id is None:
            raise WouldComputeError(artifact_id)

    def reuse(self, artifact_id: str, stage: str) -> Materialised | None:
        """Returns the stored artifact of this id if its row and all its files are whole."""
        artifact = self.home.warehouse.find_artifact(artifact_id)
        if artifact is None or not self.home.artifacts.is_whole(stage, artifact_id):
            return None
        return Materialised(artifact, self.folder(artifact), reused=True)

    def result(
        self, done: Materialised, *, key: str | None = None, **more: Any
    ) -> dg.MaterializeResult[Any]:
        """Returns what Dagster is told: the content's version, ids, its table, and the summary."""
        artifact = done.artifact
        if done.reused:
            log.info("%s: reused %s", artifact.stage, artifact.artifact_id)
        summary, table = done.summary, table_of(artifact.stage)
        metadata: dict[str, Any] = {name: _metadata_value(name, v) for name, v in summary.items()}
        metadata |= {
            **table.measured(done.folder, summary, self.key_of),
            "artifact_id": dg.MetadataValue.text(artifact.artifact_id),
            "reused": dg.MetadataValue.bool(done.reused),
            "folder": dg.MetadataValue.path(str(done.folder)),
            **more,
        }
        if artifact.dagster_run_id:
            metadata["made_by_run"] = dg.MetadataValue.dagster_run(artifact.dagster_run_id)
        if artifact.mlflow_run_id:
            tracking = self.home.tracking()
            metadata["mlflow_run"] = dg.MetadataValue.url(tracking.run_url(artifact.mlflow_run_id))
            metadata["mlflow_run_id"] = dg.MetadataValue.text(artifact.mlflow_run_id)
        return dg.MaterializeResult(
            asset_key=dg.AssetKey(key) if key else None,
            data_version=dg.DataVersion(artifact.data_version),
            metadata=metadata,
        )

    def progress(self, what: str) -> "Progress":
        """Returns a progress line that is written at most every five seconds."""
        return Progress(what)


def _asset_of(context: dg.AssetExecutionContext) -> str:
    """Returns the name of what is materialised; of several made together, all names."""
    return ", ".join(sorted(key.to_user_string() for key in context.selected_asset_keys))


def _ensure_observed(instance: dg.DagsterInstance, home: Home, name: str) -> None:
    record = instance.get_latest_data_version_record(
        dg.AssetKey(["settings", name]), is_source=True
    )
    if record is None:
        raise StaleSettingsError(f"the settings slice {name} was never observed; run `make run`")
    seen = record.asset_observation
    if seen is None or seen.tags.get("dagster/data_version") != home.slice_version(name):
        raise StaleSettingsError(
            f"the settings slice {name} was changed after it was last observed; run "
            f"`make run`, or materialise the group `settings` first"
        )


def latest_artifact(
    instance: dg.DagsterInstance,
    home: Home,
    asset: str | dg.AssetKey,
    partition: str | None = None,
) -> Artifact:
    """Returns the artifact that an asset, or one partition of it, last materialised.

    Raises:
        ArtifactError: it was never materialised, or its artifact is gone.
    """
    key = dg.AssetKey(asset) if isinstance(asset, str) else asset
    name = " ".join([key.to_user_string(), *([partition] if partition else [])])
    made = _latest_materialization(instance, key, partition)
    if made is None:
        raise ArtifactError(f"{name} must be materialised first; run `make run`")
    artifact_id = str(made.metadata["artifact_id"].value)
    artifact = home.warehouse.find_artifact(artifact_id)
    if artifact is None:
        raise ArtifactError(
            f"{artifact_id}, the latest {name}, is not in the warehouse; materialise {name} again"
        )
    return artifact


def _latest_materialization(
    instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None
) -> dg.AssetMaterialization | None:
    if partition is None:
        event = instance.get_latest_materialization_event(key)
        return event.asset_materialization if event else None
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition]), limit=1
    ).records
    return records[0].asset_materialization if records else None


class Progress:
    """Writes how far a long computation has come, how fast it is, and how long it will take."""

    def __init__(self, what: str, interval_s: float = 5.0) -> None:
        self.what, self.interval_s = what, interval_s
        self.started = self.said = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Says that `done` of `total` parts are done."""
        now = time.monotonic()
        if now - self.said < self.interval_s and done < total:
            return
        self.said = now
        rate = done / max(now - self.started, 1e-9)
        left_s = (total - done) / rate if rate else float("inf")
        log.info("%s: %d of %d, %.1f a second, %.0f s left", self.what, done, total, rate, left_s)


def _metadata_value(name: str, value: Any) -> dg.MetadataValue[Any]:
    if name.endswith("_md"):
        return dg.MetadataValue.md(value)
    if name.endswith("_url"):
        return dg.MetadataValue.url(value)
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    if isinstance(value, float):
        return dg.MetadataValue.float(value)
    if isinstance(value, str):
        return dg.MetadataValue.text(value)
    return dg.MetadataValue.json(value)


def data_version_of(folder: Path, data: Sequence[str]) -> str:
    """Returns a digest of the files named by `data`, folders taken whole."""
    files = [f for name in data for f in _files_under(folder / name)]
    return version_of_files(folder, [f.relative_to(folder).as_posix() for f in files])


def _files_under(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]
