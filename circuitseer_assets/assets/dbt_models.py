"""The dbt models on the warehouse: staging views and marts, each an asset, their tests checks."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg
from dagster_dbt import (
    DagsterDbtTranslator,
    DagsterDbtTranslatorSettings,
    DbtCliInvocation,
    DbtCliResource,
    DbtProject,
    dbt_assets,
)

from circuitseer_assets.assets.tables import shown_lineage
from circuitseer_assets.errors import WarehouseError
from circuitseer_assets.settings import PROJECT_ROOT
from resources.home import Home
from resources.interruptions import interruptions_delayed

PROJECT = DbtProject(project_dir=PROJECT_ROOT / "dbt_meta", profiles_dir=PROJECT_ROOT / "dbt_meta")

# The one installed beside this Python, on the PATH or not.
_DBT = str(Path(sys.executable).with_name("dbt"))
_ENDED_WITHIN_S = 10


class _Translator(DagsterDbtTranslator):
    """Puts every dbt model into one group."""

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:
        """Returns the group of a dbt model."""
        return "dbt_models"


def parsed_manifest(project: DbtProject = PROJECT) -> Path:
    """Returns the manifest of the dbt project, parsed anew when a file of it is newer.

    Raises:
        WarehouseError: the dbt project cannot be parsed.
    """
    manifest = Path(project.manifest_path)
    sources = [
        path
        for pattern in ("models/**/*", "macros/**/*", "tests/**/*", "*.yml")
        for path in Path(project.project_dir).glob(pattern)
        if path.is_file()
    ]
    newest = max(path.stat().st_mtime for path in sources)
    if not manifest.exists() or manifest.stat().st_mtime < newest:
        manifest.parent.mkdir(exist_ok=True)
        # Beside its place, then renamed into it: other processes may read it, or parse, just now.
        with TemporaryDirectory(dir=manifest.parent) as target:
            _parse(project, Path(target))
            Path(target, manifest.name).replace(manifest)
    return manifest


def _parse(project: DbtProject, target: Path) -> None:
    folder = str(project.project_dir)
    done = subprocess.run(
        [
            *(_DBT, "--quiet", "parse", "--project-dir", folder, "--profiles-dir", folder),
            *("--target-path", str(target)),
        ],
        env={
            **os.environ,
            # Never opened, but its name is the database's in the manifest, and has to be the one
            # that compiled SQL names: columns are looked up by it.
            "CIRCUITSEER_WAREHOUSE": "warehouse.duckdb",
            "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WarehouseError(f"{folder} must parse, and did not: {done.stdout.strip()[-2000:]}")


def dbt_resource() -> DbtCliResource:
    """Returns the resource that runs dbt as a subprocess."""
    return DbtCliResource(project_dir=PROJECT, dbt_executable=_DBT)


@dbt_assets(
    manifest=parsed_manifest(),
    project=PROJECT,
    # Several tables are written by one asset.
    dagster_dbt_translator=_Translator(
        settings=DagsterDbtTranslatorSettings(enable_duplicate_source_asset_keys=True)
    ),
    pool="duckdb",
)
def dbt_models(context: dg.AssetExecutionContext, dbt: DbtCliResource, home: Home) -> Iterator[Any]:
    """Builds the staging views and marts, and runs their tests."""
    os.environ["CIRCUITSEER_WAREHOUSE"] = str(home.warehouse.path)
    os.environ["DBT_SEND_ANONYMOUS_USAGE_STATS"] = "false"
    target = home.folder / "dbt"
    if context.selected_asset_keys != dbt_models.keys:
        # A part reads other models, and its tests compare with them: they have to be there.
        with _ended(dbt, "run", manifest=parsed_manifest(), target_path=target) as run:
            run.wait()
    with _ended(dbt, "build", context=context, target_path=target) as build:
        try:
            for event in build.stream().fetch_column_metadata():
                is_model = isinstance(event, dg.Output | dg.AssetMaterialization)
                yield _complete(build, event) if is_model else event
        finally:
            _release_warehouse(build)


@contextlib.contextmanager
def _ended(dbt: DbtCliResource, command: str, **options: Any) -> Iterator[DbtCliInvocation]:
    """Returns a context with a command of dbt that has ended, well or not; none outlives it.

    The stream of its events would wait as well, for DuckDB's lock, but in a loop that fills a
    processor, and without passing an interruption on to dbt.
    """
    invocation = None
    try:
        with interruptions_delayed():  # dagster-dbt catches all that comes while dbt is loaded
            invocation = dbt.cli([command], **options)
        invocation.is_successful()
        yield invocation
    finally:
        if invocation is not None and invocation.process.poll() is None:
            invocation.process.terminate()
            try:
                invocation.process.wait(_ENDED_WITHIN_S)
            except subprocess.TimeoutExpired:
                invocation.process.kill()


def _complete(build: DbtCliInvocation, event: Any) -> Any:
    """Returns the event of a model with what dagster-dbt leaves out.

    That is the columns' descriptions, their types as DuckDB names them, the rows of views (ours are
    single tables, soon counted), and where columns come from in a form that is shown.
    """
    node = build.manifest["nodes"][event.metadata["unique_id"].value]
    [[num_rows]] = _read(build, f"select count(*) from {node['relation_name']}")
    described = {name: column["description"] for name, column in node["columns"].items()}
    columns = [
        dg.TableColumn(name, data_type, described.get(name))
        for name, data_type, *_ in _read(build, f"describe {node['relation_name']}")
    ]
    lineage = event.metadata.get("dagster/column_lineage")
    return event.with_metadata(
        {
            **event.metadata,
            "dagster/row_count": int(num_rows),
            "dagster/column_schema": dg.TableSchema(columns),
            **(shown_lineage(lineage.value) if lineage else {}),
        }
    )


def _read(build: DbtCliInvocation, sql: str) -> list[Any]:
    adapter: Any = build.adapter
    with adapter.connection_named("complete"):
        _, table = adapter.execute(sql, fetch=True)
    return list(table)


def _release_warehouse(build: DbtCliInvocation) -> None:
    # Row counts and column metadata are read in this process, by an adapter that keeps its
    # connection: no later step could open the warehouse.
    if build.adapter is None:
        return
    manager: Any = type(build.adapter.connections)
    build.adapter.cleanup_connections()
    if manager._ENV is not None:
        manager._ENV.close()
        manager._ENV = None
