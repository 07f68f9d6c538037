"""The warehouse: whole transactions, short openings, one schema that grows by migrations."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from circuitseer_assets.errors import WarehouseError
from circuitseer_assets.records import Artifact
from resources.warehouse import Warehouse
from resources.warehouse_rows import FileRows
from resources.warehouse_schema import (
    LARGE_OWNED_TABLES,
    MIGRATIONS,
    OWNED_TABLES,
    SHARED_TABLES,
    list_migrations,
)

HOLD = """
import sys, time, duckdb
connection = duckdb.connect(sys.argv[1], read_only=sys.argv[2] == "read")
print("held", flush=True)
time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def warehouse(tmp_path: Path) -> Warehouse:
    return Warehouse(tmp_path / "home" / "warehouse.duckdb", wait_s=5)


def made(artifact_id: str, *parents: str, stage: str = "subset", **changes) -> Artifact:
    values = {"data_version": "v1", "settings": {"seed": 1}, "code_version": "1", **changes}
    return Artifact(artifact_id=artifact_id, stage=stage, parents=parents, **values)


def member_rows(subset_id: str, *sample_ids: str, weight: float = 0.5) -> pa.Table:
    return pa.table(
        {
            "subset_id": [subset_id] * len(sample_ids),
            "sample_id": list(sample_ids),
            "score": [0.5] * len(sample_ids),
            "weight": [weight] * len(sample_ids),
            "sampling_key": [1.0] * len(sample_ids),
            "inclusion_probability": [0.25] * len(sample_ids),
        }
    )


def score_rows(**scores: float) -> pa.Table:
    return pa.table(
        {
            "sample_id": list(scores),
            "score": list(scores.values()),
            "num_tokens": pa.array([9] * len(scores), pa.int64()),
        }
    )


def count(warehouse: Warehouse, table: str) -> int:
    return warehouse.query(f"select count(*) as n from {table}")["n"][0].as_py()


# recording ----------------------------------------------------------------------------------------


def test_recorded_artifact_is_found_as_it_was(warehouse: Warehouse) -> None:
    artifact = made(
        "subset-1",
        "scores-1",
        settings={"b": [1, {"c": None}], "a": "ä"},
        dagster_run_id="run",
        created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    stored = warehouse.record(artifact, mlflow_run_id="mlflow")
    assert warehouse.find_artifact("subset-1") == stored
    assert stored.mlflow_run_id == "mlflow"
    assert stored.settings == artifact.settings
    assert stored.created_at == artifact.created_at
    assert stored.parents == ("scores-1",)
    assert warehouse.find_artifact("subset-2") is None


def test_artifact_without_a_time_was_made_now(warehouse: Warehouse) -> None:
    before = datetime.now(UTC)
    stored = warehouse.record(made("subset-1"))
    assert stored.created_at is not None
    assert before <= stored.created_at <= datetime.now(UTC)


def test_recording_again_changes_nothing(warehouse: Warehouse) -> None:
    rows = {"subset_members": member_rows("subset-1", "a", "b")}
    first = warehouse.record(made("subset-1", dagster_run_id="one"), rows)
    again = warehouse.record(made("subset-1", dagster_run_id="two"), rows)
    assert again == first
    assert count(warehouse, "subset_members") == 2
    assert count(warehouse, "artifacts") == 1
    assert count(warehouse, "superseded_artifacts") == 0


def test_other_content_under_the_same_id_supersedes_it_and_what_was_made_from_it(
    warehouse: Warehouse,
) -> None:
    warehouse.record(made("corpus-1", stage="corpus"))
    warehouse.record(made("subset-1", "corpus-1"), {"subset_members": member_rows("subset-1", "a")})
    warehouse.record(made("subset-2", "subset-1"), {"subset_members": member_rows("subset-2", "a")})
    anew = made("subset-1", "corpus-1", data_version="v2")
    warehouse.record(anew, {"subset_members": member_rows("subset-1", "b", "c")})
    assert warehouse.find_artifact("subset-2") is None
    assert warehouse.find_artifact("corpus-1") is not None
    left = warehouse.query("select subset_id, sample_id from subset_members order by all")
    assert left.to_pylist() == [
        {"subset_id": "subset-1", "sample_id": "b"},
        {"subset_id": "subset-1", "sample_id": "c"},
    ]
    gone = warehouse.query("select artifact_id, data_version from superseded_artifacts order by 1")
    assert [tuple(row.values()) for row in gone.to_pylist()] == [
        ("subset-1", "v1"),
        ("subset-2", "v1"),
    ]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"subsets": member_rows("subset-1", "a")}, r"one of the tables .*got 'subsets'"),
        (
            {"subset_members": member_rows("subset-1", "a").rename_columns(list("uvwxyz"))},
            r"the columns of subset_members must be among subset_id, .*got 'u'; rename it",
        ),
        (
            {"subset_members": member_rows("subset-2", "a")},
            r"subset_members\.subset_id must be the recorded artifact's id 'subset-1', got 'subs",
        ),
        (
            {"subset_members": member_rows("subset-1", "a", "a")},
            r"each sample_id must be in subset_members once for one subset_id, got 2 rows of 1",
        ),
        ({"subset_members": member_rows("subset-1", "a", weight=0)}, r"CHECK constraint"),
        (
            {"subset_members": member_rows("subset-1", "a").drop_columns(["score"])},
            r"NOT NULL constraint failed: subset_members\.score",
        ),
    ],
)
def test_row_that_breaks_a_rule_leaves_nothing_behind(
    warehouse: Warehouse, rows, message: str
) -> None:
    members = pa.table({"corpus_id": ["subset-1"], "sample_id": ["a"]})
    with pytest.raises(WarehouseError, match=message):
        warehouse.record(made("subset-1"), {"corpus_members": members, **rows})
    assert count(warehouse, "artifacts") == 0
    assert count(warehouse, "corpus_members") == 0
    assert count(warehouse, "subset_members") == 0


def test_samples_keep_the_corpus_that_brought_them_first(warehouse: Warehouse) -> None:
    def sample(corpus_id: str, prompt_id: str = "p") -> pa.Table:
        rows = {"sample_id": "a", "prompt_id": prompt_id, "corpus_id": corpus_id}
        return pa.Table.from_pylist([{**rows, "source": "x.jsonl", "position": 3}])

    warehouse.record(made("corpus-1", stage="corpus"), {"samples": sample("corpus-1")})
    warehouse.record(made("corpus-2", stage="corpus"), {"samples": sample("corpus-2")})
    assert warehouse.query("from samples").to_pylist() == sample("corpus-1").to_pylist()
    with pytest.raises(WarehouseError, match=r"samples\.prompt_id must stay 'p' for sample_id a"):
        warehouse.record(made("corpus-3", stage="corpus"), {"samples": sample("corpus-3", "q")})


def test_every_table_says_whose_its_rows_are(warehouse: Warehouse) -> None:
    columns = warehouse.query(
        "select table_name, list(column_name) as columns from duckdb_columns() "
        "where not internal and table_name not in (select view_name from duckdb_views()) "
        "group by all"
    )
    found = {row["table_name"]: set(row["columns"]) for row in columns.to_pylist()}
    own = {"artifacts", "superseded_artifacts", "schema_migrations"}
    assert found.keys() - own == OWNED_TABLES.keys() | SHARED_TABLES.keys()
    for table, column in OWNED_TABLES.items():
        assert column in found[table]
    for table, (key, fixed) in SHARED_TABLES.items():
        assert {*key, *fixed} <= found[table]


def test_base_model_has_one_outcome_a_repeat(warehouse: Warehouse) -> None:
    def outcomes(*checkpoints: str | None) -> pa.Table:
        return pa.Table.from_pylist(
            [
                {
                    "evaluation_id": "evaluation-1",
                    "checkpoint_id": checkpoint,
                    "model_digest": "same",
                    "task": "t",
                    "doc_id": "1",
                    "repeat": 0,
                    "correct": True,
                    "truncated": False,
                }
                for checkpoint in checkpoints
            ]
        )

    rows = {"evaluation_outcomes": outcomes(None, "checkpoint-1")}
    warehouse.record(made("evaluation-1", stage="evaluation"), rows)
    twice = {"evaluation_outcomes": outcomes(None, None)}
    with pytest.raises(WarehouseError, match="UNIQUE constraint violation"):
        warehouse.record(made("evaluation-1", stage="evaluation", data_version="v2"), twice)
    assert count(warehouse, "evaluation_outcomes") == 2


# scores -------------------------------------------------------------------------------------------


def test_scores_are_appended_once(warehouse: Warehouse) -> None:
    assert warehouse.append_scores("scorer", score_rows(a=1.0, b=2.0)) == 2
    assert warehouse.append_scores("scorer", score_rows(b=2.0, c=3.0)) == 1
    assert warehouse.append_scores("other", score_rows(a=9.0)) == 1
    assert warehouse.scored_sample_ids("scorer") == {"a", "b", "c"}
    assert warehouse.scored_sample_ids("scorer", ["b", "x"]) == {"b"}
    assert warehouse.scored_sample_ids("nobody") == set()


def test_samples_without_a_score_are_kept_with_the_reason(warehouse: Warehouse) -> None:
    unscored = pa.table({"sample_id": ["b"], "reason": ["too_short"], "detail": ["5 tokens"]})
    warehouse.append_scores("scorer", score_rows(a=1.0), unscored)
    warehouse.append_scores("scorer", score_rows(a=1.0), unscored)
    assert warehouse.unscored_sample_ids("scorer") == {"b"}
    assert warehouse.scored_sample_ids("scorer") == {"a"}


def test_another_score_for_the_same_sample_is_refused_and_a_rounding_is_not(
    warehouse: Warehouse,
) -> None:
    warehouse.append_scores("scorer", score_rows(a=1.0))
    assert warehouse.append_scores("scorer", score_rows(a=1.0 + 1e-6)) == 0
    message = (
        r"sample_scores\.score must stay 1\.0 for scorer_id scorer, sample_id a, got 1\.5; "
        r"give what changed another scorer_id"
    )
    with pytest.raises(WarehouseError, match=message):
        warehouse.append_scores("scorer", score_rows(b=2.0, a=1.5))
    assert warehouse.query("from sample_scores").to_pylist() == [
        {"scorer_id": "scorer", "sample_id": "a", "score": 1.0, "num_tokens": 9}
    ]


def test_one_shard_with_two_scores_for_a_sample_is_refused(warehouse: Warehouse) -> None:
    twice = pa.concat_tables([score_rows(a=1.0), score_rows(a=2.0)])
    with pytest.raises(WarehouseError, match=r"sample_scores\.score must stay .* sample_id a, got"):
        warehouse.append_scores("scorer", twice)
    assert warehouse.append_scores("scorer", pa.concat_tables([score_rows(a=1.0)] * 2)) == 1


# looking up ---------------------------------------------------------------------------------------


def test_latest_artifacts_come_newest_first(warehouse: Warehouse) -> None:
    for number in (1, 2, 3):
        warehouse.record(made(f"subset-{number}", created_at=datetime(2026, 1, 4 - number)))
    warehouse.record(made("corpus-1", stage="corpus"))
    ids = [artifact.artifact_id for artifact in warehouse.latest_artifacts("subset")]
    assert ids == ["subset-1", "subset-2", "subset-3"]
    assert len(warehouse.latest_artifacts("subset", limit=1)) == 1


def test_probe_sets_are_found_by_settings_and_code(warehouse: Warehouse) -> None:
    settings = {"probe_set": {"seed": 0, "num_ranking": 4}, "note": "é"}
    warehouse.record(made("probe_set-1", stage="probe_set", settings=settings))
    reordered = {"note": "é", "probe_set": {"num_ranking": 4, "seed": 0}}
    (found,) = warehouse.find_probe_sets(reordered, "1")
    assert found.artifact_id == "probe_set-1"
    assert warehouse.find_probe_sets({**settings, "note": ""}, "1") == []
    assert warehouse.find_probe_sets(settings, "2") == []


def test_lineage_goes_up_and_descendants_down(warehouse: Warehouse) -> None:
    for name, parents in {
        "corpus": [],
        "probe_set": ["corpus"],
        "pool": ["corpus", "probe_set"],
        "head_ranking": ["probe_set"],
        "sample_scores": ["pool", "head_ranking"],
        "subset": ["sample_scores"],
        "other": ["corpus"],
    }.items():
        warehouse.record(made(name, *parents, stage=name))
    up = [artifact.artifact_id for artifact in warehouse.lineage("subset")]
    assert up[:2] == ["subset", "sample_scores"]
    assert sorted(up[2:4]) == ["head_ranking", "pool"]
    assert up[4:] == ["probe_set", "corpus"]
    down = [artifact.artifact_id for artifact in warehouse.descendants("probe_set")]
    assert sorted(down[:2]) == ["head_ranking", "pool"]
    assert down[2:] == ["sample_scores", "subset"]
    assert warehouse.lineage("unknown") == []


def test_query_is_read_only(warehouse: Warehouse) -> None:
    assert warehouse.query("select $a + 1 as b", {"a": 1}).to_pylist() == [{"b": 2}]
    with pytest.raises(WarehouseError, match="read-only"):
        warehouse.query("delete from artifacts")
    with pytest.raises(WarehouseError, match=r"refused a statement: .*nowhere"):
        warehouse.query("from nowhere")


# opening, waiting, dying --------------------------------------------------------------------------


def test_connection_is_closed_after_an_exception(warehouse: Warehouse) -> None:
    def fail_within_a_transaction() -> None:
        with warehouse.connect() as connection:
            connection.execute("begin")
            connection.execute("insert into corpus_members values ('c', 's')")
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail_within_a_transaction()
    duckdb.connect(str(warehouse.path), read_only=True).close()
    assert count(warehouse, "corpus_members") == 0


def hold(path: Path, how: str, seconds: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), how, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("read_only", [True, False])
def test_giving_up_names_the_process_that_holds_the_file(
    warehouse: Warehouse, read_only: bool
) -> None:
    warehouse.migrate()
    warehouse.wait_s = 0.3
    with hold(warehouse.path, "write", 60) as holder:
        started = time.monotonic()
        with (
            pytest.raises(WarehouseError) as caught,
            warehouse.connect(read_only=read_only),
        ):
            pass
        waited_s = time.monotonic() - started
        holder.kill()
    assert 0.05 < waited_s < 2
    assert re.search(
        rf"must be free within 0\.3 s, but the process with PID {holder.pid} holds it; wait for "
        rf"that process or stop it",
        str(caught.value),
    )


def test_waiting_ends_when_the_file_is_free(warehouse: Warehouse) -> None:
    warehouse.migrate()
    with hold(warehouse.path, "write", 0.5):
        warehouse.record(made("subset-1"))
    assert count(warehouse, "artifacts") == 1


def test_readers_do_not_wait_for_each_other(warehouse: Warehouse) -> None:
    warehouse.migrate()
    warehouse.wait_s = 0
    with hold(warehouse.path, "read", 60) as holder:
        assert count(warehouse, "artifacts") == 0
        holder.kill()


def test_reader_within_a_writing_process_is_told_who_holds_it(warehouse: Warehouse) -> None:
    warehouse.wait_s = 0.1
    with (
        warehouse.connect(),
        pytest.raises(WarehouseError, match=rf"this process \(PID {os.getpid()}"),
    ):
        warehouse.query("from artifacts")


def test_killed_transaction_leaves_nothing(warehouse: Warehouse) -> None:
    program = f"""
import os, signal
from pathlib import Path
from resources.warehouse import Warehouse
warehouse = Warehouse(Path({str(warehouse.path)!r}))
with warehouse.connect() as connection:
    connection.execute("insert into corpus_members values ('whole', 's')")
    connection.execute("begin")
    connection.execute("insert into corpus_members select 'half', i from range(100000) t(i)")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False)
    assert done.returncode == -signal.SIGKILL
    rows = warehouse.query("select distinct corpus_id from corpus_members").to_pylist()
    assert rows == [{"corpus_id": "whole"}]


def test_writers_at_the_same_time_lose_nothing(warehouse: Warehouse) -> None:
    program = """
import sys
from pathlib import Path
import pyarrow as pa
from resources.warehouse import Warehouse
warehouse, first = Warehouse(Path(sys.argv[1])), int(sys.argv[2])
for number in range(first, first + 5):
    row = {"sample_id": f"s{number}", "score": 1.0, "num_tokens": 9}
    warehouse.append_scores("scorer", pa.Table.from_pylist([row]))
"""
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(warehouse.path), str(first)])
        for first in (0, 3)
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert warehouse.scored_sample_ids("scorer") == {f"s{number}" for number in range(8)}


def test_a_damaged_file_is_not_taken_for_a_locked_one(tmp_path: Path) -> None:
    path = tmp_path / "blocks" / "locked.duckdb"  # names that hold the word
    path.parent.mkdir()
    path.write_bytes(b"no database" * 1000)
    started = time.monotonic()
    with pytest.raises(WarehouseError, match="must be a DuckDB file of this version"):
        Warehouse(path, wait_s=30).query("select 1")
    assert time.monotonic() - started < 10


def test_file_that_is_no_warehouse_is_refused(warehouse: Warehouse) -> None:
    warehouse.path.parent.mkdir()
    warehouse.path.write_text("text" * 5000)
    with pytest.raises(
        WarehouseError, match=r"must be a DuckDB file of this version: .*not a valid"
    ):
        warehouse.query("from artifacts")


# migrations ---------------------------------------------------------------------------------------


@pytest.fixture
def version_1(tmp_path: Path) -> Path:
    """A migrations folder that ends with version 1."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / MIGRATIONS.glob("0001_*").__next__().name).write_text(
        list_migrations()[1].read_text()
    )
    return folder


def test_new_warehouse_has_every_migration(warehouse: Warehouse) -> None:
    versions = warehouse.query("select version from schema_migrations order by version")
    assert versions["version"].to_pylist() == list(list_migrations())


def test_warehouse_of_version_1_is_brought_up_to_date_with_its_rows(
    warehouse: Warehouse, version_1: Path
) -> None:
    old = Warehouse(warehouse.path, migrations=version_1)
    old.record(made("subset-1"), {"subset_members": member_rows("subset-1", "a")})
    assert old.query("from schema_migrations").num_rows == 1
    rows = warehouse.query("from subset_members")  # by the code of today, which only reads
    assert rows.to_pylist() == member_rows("subset-1", "a").to_pylist()
    assert warehouse.query("from schema_migrations").num_rows == len(list_migrations())
    assert warehouse.find_artifact("subset-1") is not None


def test_migration_may_add_columns_to_tables_with_rows_and_keys(
    warehouse: Warehouse, version_1: Path
) -> None:
    old = Warehouse(warehouse.path, migrations=version_1)
    old.record(made("subset-1"), {"subset_members": member_rows("subset-1", "a")})
    (version_1 / "0002_why.sql").write_text(
        "alter table subset_members add column why varchar default 'drawn';"
        "create table notes (note varchar);"
    )
    newer = Warehouse(warehouse.path, migrations=version_1)
    assert newer.query("select why from subset_members").to_pylist() == [{"why": "drawn"}]
    assert newer.query("from notes").num_rows == 0


@pytest.mark.parametrize("read_only", [True, False])
def test_warehouse_of_a_newer_version_is_refused(
    warehouse: Warehouse, version_1: Path, read_only: bool
) -> None:
    warehouse.migrate()
    version = len(list_migrations())
    older_code = Warehouse(warehouse.path, migrations=version_1)
    message = (
        rf"schema version must be at most 1 \(this code's\), got {version}; use the newer "
        rf"CircuitSeer that wrote it, or another CIRCUITSEER_HOME"
    )
    with (
        pytest.raises(WarehouseError, match=message),
        older_code.connect(read_only=read_only),
    ):
        pass


def test_failing_migration_changes_nothing(warehouse: Warehouse, version_1: Path) -> None:
    (version_1 / "0002_wrong.sql").write_text("create table notes (note varchar); select nothing;")
    broken = Warehouse(warehouse.path, migrations=version_1)
    with pytest.raises(WarehouseError, match="nothing"):
        broken.migrate()
    (version_1 / "0002_wrong.sql").unlink()
    tables = broken.query("select table_name from duckdb_tables() where table_name = 'notes'")
    assert tables.num_rows == 0
    assert broken.query("select max(version) as v from schema_migrations")["v"][0].as_py() == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("0003_gap.sql", r"numbered 1, 2, 3 \.\.\., got \[1, 3\]"), ("two.sql", "must be named NNNN")],
)
def test_misnamed_migration_is_refused(version_1: Path, name: str, message: str) -> None:
    (version_1 / name).write_text("select 1")
    with pytest.raises(WarehouseError, match=message):
        list_migrations(version_1)


# rows in files ------------------------------------------------------------------------------------


def test_rows_in_files_are_those_of_a_table(warehouse: Warehouse, tmp_path: Path) -> None:
    rows = member_rows("subset-1", *"abcde")
    for number, part in enumerate((rows.slice(0, 2), rows.slice(2))):
        (tmp_path / "files").mkdir(exist_ok=True)
        own = part.drop_columns(["subset_id"]).append_column("unasked", pa.array([0] * len(part)))
        pq.write_table(own, tmp_path / "files" / f"part-{number}.parquet")
    columns = [name for name in rows.column_names if name != "subset_id"]
    filed = FileRows("part-*.parquet", columns, {"subset_id": "subset-1"})
    of_files = {"subset_members": filed.inside(tmp_path / "files")}
    warehouse.record(made("subset-1"), of_files)
    stored = warehouse.query("from subset_members order by sample_id")
    assert stored.to_pylist() == rows.to_pylist()
    with pytest.raises(WarehouseError, match=r"must be the recorded artifact's id 'subset-2'"):
        warehouse.record(made("subset-2"), of_files)


def test_an_older_warehouse_keeps_its_rows_and_loses_its_keys(tmp_path: Path) -> None:
    older = tmp_path / "migrations"
    older.mkdir()
    for path in list(list_migrations().values())[:7]:
        shutil.copy(path, older)
    rows = {"subset_members": member_rows("subset-1", "a", "b")}
    Warehouse(tmp_path / "old.duckdb", migrations=older).record(made("subset-1"), rows)
    warehouse = Warehouse(tmp_path / "old.duckdb")
    assert warehouse.query("from subset_members").to_pylist() == rows["subset_members"].to_pylist()
    keys = warehouse.query(
        "select table_name from duckdb_constraints() where constraint_type = 'PRIMARY KEY'"
    )
    large = {"samples", "sample_lengths", "sample_scores", "unscored_samples"}
    assert not {*keys["table_name"].to_pylist()} & {*large, *LARGE_OWNED_TABLES}
