"""`circuitseer verify` and `diff` on a real home: the right culprit is named, and no other."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from circuitseer_assets.assets.stage import data_version_of
from circuitseer_assets.definitions import make_definitions
from circuitseer_assets.errors import SettingsError
from circuitseer_assets.method.verification import Verification
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.settings import PROJECT_ROOT
from jobs.diff import diff_subsets
from jobs.run import observe_now, run_job
from jobs.verify import CHECKS, verify
from resources.artifacts import MANIFEST, digest_file
from resources.home import Home
from tests.conftest import small_settings, write_settings
from tests.test_cli import circuitseer

STAGES = ("corpus", "probe_set", "pool", "head_ranking", "sample_scores", "subset")


@dataclass(frozen=True)
class Made:
    """A home with a subset, and the files outside of it that it was made from."""

    folder: Path
    corpus: Path
    model: Path
    ids: dict[str, str]
    small_subset: str

    @property
    def home(self) -> Home:
        return Home.prepared(self.folder)

    def path(self, stage: str, name: str) -> Path:
        return self.folder / "artifacts" / stage / self.ids[stage] / name

    def verify(self, **options: Any) -> Verification:
        return verify(self.home, self.ids["subset"], **options)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, environment: None) -> Made:
    """A home of a corpus in a file and a model in a folder, made up to its subset, twice."""
    place = tmp_path_factory.mktemp("verified")
    rows = [
        {"prompt": problem.prompt, "response": problem.response}
        for problem in generate_problems(150, seed=3, split="train")
    ]
    corpus = place / "train.jsonl"
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(PROJECT_ROOT / "models/tiny", place / "model")
    home = Home.prepared(place / "home")
    values = small_settings() | {
        "base_model": {"source": "local", "path": str(place / "model")},
        "corpus": {
            "source": "files",
            "paths": [str(corpus)],
            "columns": {"prompt": "prompt", "response": "response"},
        },
    }
    small = make(home, values | {"selection": {"budget": {"samples": 8}}}, STAGES)
    made = make(home, values | {"selection": {"budget": {"samples": 12}}}, ["subset"])
    return Made(home.folder, corpus, place / "model", small | made, small["subset"])


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    names = ("CIRCUITSEER_HOME", "DAGSTER_HOME")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def make(home: Home, values: dict[str, Any], stages: Any) -> dict[str, str]:
    write_settings(home.folder, values)
    home.set_environment()
    observe_now(home)
    run = run_job(make_definitions(home), home, assets=[dg.AssetKey(name) for name in stages])
    return {name: run.of(name, "artifact_id") for name in stages}


@pytest.fixture
def made(original: Made, tmp_path: Path) -> Iterator[Made]:
    """A copy of the home, to be spoilt; the files outside are put back afterwards."""
    folder = tmp_path / "home"
    shutil.copytree(original.folder, folder)
    kept = tmp_path / "kept"
    shutil.copytree(original.model, kept)
    corpus = original.corpus.read_bytes()
    yield Made(folder, original.corpus, original.model, original.ids, original.small_subset)
    original.corpus.write_bytes(corpus)
    shutil.rmtree(original.model)
    shutil.copytree(kept, original.model)


def outcomes(verification: Verification) -> dict[str, str]:
    return {check.name: check.outcome for check in verification.checks}


def differing(verification: Verification) -> set[str]:
    return {name for name, outcome in outcomes(verification).items() if outcome == "differs"}


def findings(verification: Verification, name: str) -> str:
    [check] = [check for check in verification.checks if check.name == name]
    return "\n".join(check.findings)


def edit(made: Made, sql: str, *params: Any) -> None:
    with duckdb.connect(made.folder / "warehouse.duckdb") as connection:
        connection.execute(sql, list(params))


def test_an_untouched_home_is_fine_in_every_way(made: Made) -> None:
    done = circuitseer(made.folder, "verify", made.ids["subset"], "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["is_ok"] is True
    assert [check["name"] for check in said["checks"]] == [
        one for one in CHECKS if one != "release"
    ]
    assert {check["outcome"] for check in said["checks"]} == {"ok"}
    assert verify(made.home, made.ids["head_ranking"]).is_ok


def test_a_score_edited_in_the_warehouse_is_named(made: Made) -> None:
    scores = pq.read_table(made.path("sample_scores", "scores.parquet")).to_pylist()
    row = scores[len(scores) // 2]
    edit(made, "update sample_scores set score = 0.5 where sample_id = ?", row["sample_id"])
    done = circuitseer(made.folder, "verify", made.ids["subset"])
    assert done.returncode == 1, done.stderr
    [line] = [line for line in done.stdout.splitlines() if "differs" in line][:-1]
    assert line.startswith("rows ")
    assert f"sample_scores.score of sample_id {row['sample_id']} is 0.5 in the warehouse" in line
    assert f"and {row['score']} in the files of {made.ids['sample_scores']}" in line
    assert done.stdout.splitlines()[-1] == f"{made.ids['subset']}: differs"


def test_rows_that_the_warehouse_lost_or_never_had_are_named(made: Made) -> None:
    pool = pq.read_table(made.path("pool", "pool.parquet"))["sample_id"].to_pylist()
    edit(made, "delete from pool_members where pool_id = ?", made.ids["pool"])
    edit(
        made,
        "insert into subset_members by name select * replace ('none' as sample_id) "
        "from subset_members where subset_id = ? limit 1",
        made.ids["subset"],
    )
    found = made.verify(skip=["scores", "heads"])
    assert differing(found) == {"rows"}
    [check] = [check for check in found.checks if check.name == "rows"]
    assert len(check.findings) + check.num_more == len(pool) + 1
    said = findings(found, "rows")
    assert (
        f"sample_id none of {made.ids['subset']} is in the warehouse and not in the files" in said
    )
    assert f"of {made.ids['pool']} is in the files and not in the warehouse" in said


def rewrite(path: Path, column: str, row: int, value: float) -> pa.Table:
    table = pq.read_table(path)
    values = table[column].to_pylist()
    values[row] = value
    table = table.set_column(table.column_names.index(column), column, pa.array(values))
    pq.write_table(table, path)
    return table


def test_a_score_edited_in_its_file_is_named(made: Made) -> None:
    rewrite(made.path("sample_scores", "scores.parquet"), "score", 0, 7.0)
    found = made.verify()
    # What needs the file is not checked where its size alone tells that it is another.
    assert "files" in differing(found) <= {"files", "content", "rows", "draw", "scores"}
    assert "scores.parquet must have" in findings(found, "files")


def cover_up(made: Made, stage: str, name: str) -> None:
    """Makes manifest and warehouse agree with an edited file, as a careful forger would."""
    path = made.path(stage, name)
    manifest = path.parent / MANIFEST
    recorded = json.loads(manifest.read_text())
    recorded["files"][name] = {"sha256": digest_file(path), "bytes": path.stat().st_size}
    manifest.write_text(json.dumps(recorded))
    artifact_id = made.ids[stage]
    edit(
        made,
        "update artifact_evidence set manifest_sha256 = ? where artifact_id = ?",
        *(digest_file(manifest), artifact_id),
    )
    version = data_version_of(path.parent, [name])
    edit(made, "update artifacts set data_version = ? where artifact_id = ?", version, artifact_id)


def test_a_score_edited_everywhere_is_found_by_scoring_again(made: Made) -> None:
    path = made.path("sample_scores", "scores.parquet")
    members = pq.read_table(made.path("subset", "subset_members.parquet"))
    table = pq.read_table(path)
    drawn = set(members["sample_id"].to_pylist())
    ids = table["sample_id"].to_pylist()
    row = next(i for i, name in enumerate(ids) if name not in drawn)
    value = table["score"][row].as_py() * 0.999  # lower: it stays out of the subset
    rewrite(path, "score", row, value)
    edit(made, "update sample_scores set score = ? where sample_id = ?", value, ids[row])
    cover_up(made, "sample_scores", "scores.parquet")
    found = made.verify(num_samples=len(ids))
    assert differing(found) == {"scores"}
    assert f"the score of {ids[row]} comes out as" in findings(found, "scores")
    assert outcomes(made.verify(skip=["scores"]))["scores"] == "skipped"


def test_a_heads_effect_edited_everywhere_is_found_by_ablating_again(made: Made) -> None:
    path = made.path("head_ranking", "head_importance.parquet")
    table = pq.read_table(path)
    chosen = table["is_reasoning_head"].to_pylist().index(True)
    layer, head = (table[name][chosen].as_py() for name in ("layer", "head"))
    value = table["delta_loss_nats"][chosen].as_py() + 0.01
    rewrite(path, "delta_loss_nats", chosen, value)
    edit(
        made,
        "update head_importance set delta_loss_nats = ? where layer = ? and head = ?",
        *(value, layer, head),
    )
    stored = made.path("head_ranking", "head_ranking.json")
    ranking = json.loads(stored.read_text())
    for row in ranking["importance"]:
        if row["head"] == {"layer": layer, "head": head}:
            row["delta_loss_nats"] = value
    stored.write_text(json.dumps(ranking, indent=1))
    cover_up(made, "head_ranking", "head_ranking.json")
    cover_up(made, "head_ranking", "head_importance.parquet")
    found = made.verify(num_heads=table.num_rows)
    assert differing(found) == {"heads"}
    assert f"ablating head {layer}.{head} costs" in findings(found, "heads")


def test_evidence_forged_together_with_its_manifest_is_named(made: Made) -> None:
    """The joint ablation's p-value is in no file that the content's digest is of."""
    stored = made.path("head_ranking", "head_ranking.json")
    ranking = json.loads(stored.read_text())
    ranking["joint"]["p_value"] = 0.0001
    stored.write_text(json.dumps(ranking, indent=1))
    manifest = stored.parent / MANIFEST
    recorded = json.loads(manifest.read_text())
    recorded["files"][stored.name] = {
        "sha256": digest_file(stored),
        "bytes": stored.stat().st_size,
    }
    manifest.write_text(json.dumps(recorded))
    found = made.verify(skip=["scores", "heads"])
    assert differing(found) == {"files", "rows"}
    assert f"{manifest} must have the SHA-256" in findings(found, "files")
    assert "head_rankings.joint_p_value" in findings(found, "rows")


def test_another_head_in_one_file_of_the_ranking_is_not_blamed_on_the_scores(made: Made) -> None:
    stored = made.path("head_ranking", "head_ranking.json")
    ranking = json.loads(stored.read_text())
    for row in ranking["importance"]:
        row["is_reasoning_head"] = not row["is_reasoning_head"]
    stored.write_text(json.dumps(ranking, indent=1))
    cover_up(made, "head_ranking", "head_ranking.json")
    cover_up(made, "head_ranking", "head_importance.parquet")
    found = made.verify()
    assert differing(found) == {"rows"}
    assert "in head_ranking.json and" in findings(found, "rows")
    assert outcomes(found)["scores"] == outcomes(found)["heads"] == "not checked"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("update head_rankings set clean_loss_nats = 9", "head_rankings.clean_loss_nats"),
        ("update head_importance set p_holm = 0 where is_reasoning_head", "head_importance.p_holm"),
    ],
)
def test_a_rankings_evidence_edited_in_the_warehouse_is_named(
    made: Made, change: str, said: str
) -> None:
    edit(made, change)
    found = made.verify(skip=["scores", "heads"])
    assert differing(found) == {"rows"}
    assert said in findings(found, "rows")


def test_one_missing_file_does_not_hide_an_edited_row(made: Made) -> None:
    made.path("subset", "subset_members.parquet").unlink()
    edit(made, "update sample_scores set score = score * 2")
    found = made.verify(skip=["scores", "heads"])
    assert {"files", "rows"} <= differing(found)
    assert "sample_scores.score of sample_id" in findings(found, "rows")


def test_a_model_is_verified_where_it_was_though_settings_have_moved_on(made: Made) -> None:
    settings = made.folder / "settings.yaml"
    values = yaml.safe_load(settings.read_text())
    elsewhere = made.folder.parent / "elsewhere"
    shutil.copytree(made.model, elsewhere)
    values["base_model"]["path"] = str(elsewhere)
    settings.write_text(yaml.safe_dump(values))
    assert differing(made.verify(skip=["scores", "heads"])) == set()  # the same in another place

    config = elsewhere / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 1e-3}))
    found = made.verify(num_samples=4)
    assert differing(found) == {"settings"}
    assert f"base_model names {elsewhere} in the settings in use" in findings(found, "settings")
    assert outcomes(found)["model"] == outcomes(found)["scores"] == outcomes(found)["heads"] == "ok"


def test_samples_are_drawn_by_chance_unless_a_seed_is_given(made: Made) -> None:
    def looked_at(**options: Any) -> str:
        found = made.verify(num_samples=1, **options)
        return next(check.looked_at for check in found.checks if check.name == "scores")

    assert looked_at(seed=5) == "1 samples, scored again (--seed 5)"
    assert looked_at() != looked_at()


def test_a_swapped_model_file_is_named_whatever_its_time_says(made: Made) -> None:
    path = made.model / "model.safetensors"
    stat = path.stat()
    weights = load_file(path)
    name = next(iter(weights))
    weights[name] = weights[name] + np.float32(1e-3)
    save_file(weights, path, metadata={"format": "pt"})
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    found = made.verify(skip=["scores", "heads"])
    assert differing(found) == {"model"}
    assert "the weights or configuration of base_model" in findings(found, "model")
    os.utime(path)
    found = made.verify()
    assert differing(found) == {"model"}
    assert outcomes(found)["scores"] == outcomes(found)["heads"] == "not checked"
    path.unlink()
    assert differing(made.verify()) == {"model"}


def test_a_check_that_could_not_be_made_is_no_success(made: Made) -> None:
    scorer = "update artifacts set settings = replace(settings, '\"attention\"', '\"diversity\"')"
    edit(made, f"{scorer} where artifact_id = ?", made.ids["sample_scores"])
    skip = [word for check in ("ids", "settings", "model", "heads") for word in ("--skip", check)]
    done = circuitseer(made.folder, "verify", made.ids["subset"], *skip)
    assert done.returncode == 3, done.stdout + done.stderr
    unchecked = "ids, settings, model, scores, heads"
    assert done.stdout.splitlines()[-1] == f"{made.ids['subset']}: OK, not checked: {unchecked}"
    done = circuitseer(
        made.folder, "verify", made.ids["subset"], *skip, "--skip", "scores", "--json"
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["not_checked"] == unchecked.split(", ")
    assert said["is_ok"] is True


def test_a_changed_tokenizer_is_named(made: Made) -> None:
    path = made.model / "tokenizer.json"
    path.write_text(path.read_text() + "\n")
    found = made.verify()
    assert differing(found) == {"model"}
    assert "the tokenizer or prompt template of base_model" in findings(found, "model")


@pytest.mark.parametrize("change", ["edited", "gone", "new", "missing"])
def test_a_changed_corpus_row_is_named(made: Made, change: str) -> None:
    lines = made.corpus.read_text().splitlines(keepends=True)
    row = json.loads(lines[17])
    problem = {"prompt": "Ann has 3 figs and eats 2. How many are left?", "response": "3-2=1"}
    changed = {
        "edited": [*lines[:17], json.dumps(row | {"response": "nothing"}) + "\n", *lines[18:]],
        "gone": lines[:-1],
        "new": [*lines, json.dumps(problem) + "\n"],
    }
    if change == "missing":
        made.corpus.unlink()
    else:
        made.corpus.write_text("".join(changed[change]))
    found = made.verify()
    assert differing(found) == {"corpus"}
    said = findings(found, "corpus")
    expected = {
        "edited": "row 17 of train.jsonl is ",
        "gone": f"row {len(lines) - 1} of train.jsonl is no usable sample and was ",
        "new": f"row {len(lines)} of train.jsonl is ",
        "missing": str(made.corpus),
    }
    assert expected[change] in said
    assert len(said.splitlines()) == 1


def test_after_new_rows_and_changed_settings_only_the_corpus_in_use_is_compared(
    made: Made,
) -> None:
    """The probes are kept, so that the lineage also holds the corpus that they were drawn from."""
    values = yaml.safe_load((made.folder / "settings.yaml").read_text())
    new = list(generate_problems(155, seed=3, split="train"))[150:]
    with made.corpus.open("a") as file:
        for problem in new:
            file.write(json.dumps({"prompt": problem.prompt, "response": problem.response}) + "\n")
    values["corpus"]["max_rows"] = 153
    again = make(made.home, values, STAGES)
    assert again["probe_set"] == made.ids["probe_set"]
    assert again["corpus"] != made.ids["corpus"]
    for name in ("subset", "head_ranking"):
        assert {c.outcome for c in verify(made.home, again[name]).checks} == {"ok"}, name
    brief = {"skip": ["scores", "heads"]}
    assert differing(made.verify(**brief)) == {"settings", "corpus"}  # what was drawn before
    assert differing(verify(made.home, made.ids["corpus"], **brief)) == {"settings", "corpus"}

    settings = diff_subsets(made.home, made.ids["subset"], again["subset"]).settings
    assert ("corpus.max_rows", None, 153) in settings
    edit(made, "update artifacts set code_version = '0' where artifact_id = ?", again["corpus"])
    settings = diff_subsets(made.home, made.ids["subset"], again["subset"]).settings
    assert ("code_version.corpus", "1", "0") in settings

    probes = made.path("probe_set", "ranking") / "samples-00000.parquet"
    probe = pq.read_table(probes, columns=["sample_id", "position"]).to_pylist()[0]
    lines = made.corpus.read_text().splitlines(keepends=True)
    lines[probe["position"]] = lines[-1]
    made.corpus.write_text("".join(lines))
    found = verify(made.home, again["head_ranking"], **brief)
    assert differing(found) == {"corpus"}
    assert findings(found, "corpus").startswith(f"probe {probe['sample_id']} of probe_set-")


def test_a_changed_setting_is_named_in_the_file_and_in_the_warehouse(made: Made) -> None:
    settings = made.folder / "settings.yaml"
    before = settings.read_text()
    values = yaml.safe_load(before)
    values["selection"]["seed"] = 9
    settings.write_text(yaml.safe_dump(values))
    found = made.verify()
    assert differing(found) == {"settings"}
    assert findings(found, "settings").startswith("selection.seed is 9 in the settings in use")
    settings.write_text(before)
    edit(
        made,
        "update artifacts set settings = replace(settings, '\"samples\":12', '\"samples\":13') "
        "where artifact_id = ?",
        made.ids["subset"],
    )
    found = made.verify()
    assert {"ids", "settings"} <= differing(found) <= {"ids", "settings", "draw"}
    assert f"records of {made.ids['subset']} are those of subset-" in findings(found, "ids")


def test_a_missing_shard_is_named_and_what_needs_it_is_not_checked(made: Made) -> None:
    shard = made.path("corpus", "samples") / "samples-00000.parquet"
    shard.unlink()
    found = made.verify()
    assert differing(found) == {"files"}
    assert f"{shard} is missing" in findings(found, "files")
    assert outcomes(found)["corpus"] == outcomes(found)["scores"] == "not checked"
    assert outcomes(found)["draw"] == outcomes(found)["heads"] == "ok"


def test_a_member_that_the_scores_do_not_draw_is_named(made: Made) -> None:
    path = made.path("subset", "subset_members.parquet")
    table = pq.read_table(path)
    gone = table["sample_id"][3].as_py()
    pq.write_table(pa.concat_tables([table.slice(0, 3), table.slice(4)]), path)
    edit(made, "delete from subset_members where sample_id = ?", gone)
    cover_up(made, "subset", "subset_members.parquet")
    found = made.verify()
    assert differing(found) == {"draw"}
    assert f"member of {gone} is True when {made.ids['subset']} is drawn again" in findings(
        found, "draw"
    )


def test_a_gap_in_the_lineage_is_named(made: Made) -> None:
    edit(made, "delete from artifacts where artifact_id = ?", made.ids["pool"])
    found = made.verify()
    assert differing(found) == {"lineage"}
    assert made.ids["pool"] in findings(found, "lineage")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["subset-none"], "subset-none"),
        (["--skip", "everything"], "--skip must be one of release, lineage, "),
        (["--samples", "0"], "--samples must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_verified_is_refused(
    original: Made, arguments: list[str], message: str
) -> None:
    name = [] if arguments[0] == "subset-none" else [original.ids["subset"]]
    done = circuitseer(original.folder, "verify", *name, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    with pytest.raises(SettingsError):
        verify(original.home, original.ids["subset"], num_heads=0)


def test_a_difference_of_budgets_is_told_as_such(original: Made) -> None:
    done = circuitseer(
        original.folder, "diff", original.small_subset, original.ids["subset"], "--json"
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["num_kept"] == 8
    assert set(said["came_in"].values()) == {"budget"}
    assert len(said["came_in"]) == 4
    assert said["went_out"] == {}
    assert said["heads"]["gained"] == said["heads"]["lost"] == []
    assert said["scores"]["num_changed"] == 0
    assert said["scores"]["rank_correlation"] == pytest.approx(1)
    assert said["settings"] == [{"key": "selection.budget.samples", "before": 8, "after": 12}]
    table = circuitseer(original.folder, "diff", original.small_subset, original.ids["subset"])
    assert "selection.budget.samples: 8 -> 12" in table.stdout
    assert diff_subsets(original.home, original.small_subset, original.small_subset).is_same
    wrong: Callable[..., Any] = circuitseer
    assert wrong(original.folder, "diff", "corpus-1", original.ids["subset"]).returncode == 2
