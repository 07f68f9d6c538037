"""The lineage of an artifact: everything upstream, once, and a word on what is not there."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.audit import (
    MAX_SUMMARY,
    format_lineage,
    lineage_as_json,
    summarise_lineage,
    trace_lineage,
)
from circuitseer_assets.records import Artifact
from tests.chains import paper_lineage

GRAPH = {
    "corpus": (),
    "probe_set": ("corpus",),
    "pool": ("corpus", "probe_set"),
    "head_ranking": ("probe_set",),
    "sample_scores": ("pool", "head_ranking"),
    "subset": ("sample_scores",),
    "other": ("corpus",),
}


def graph(**changes: tuple[str, ...]) -> dict[str, Artifact]:
    return {
        name: Artifact(
            artifact_id=name,
            stage=name,
            data_version=f"v-{name}",
            parents=parents,
            settings={name: {"seed": 1, "a": None}, "digest": "d"},
            code_version="3",
            dagster_run_id="run-1",
            mlflow_run_id="mlflow-1" if name == "subset" else None,
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        for name, parents in {**GRAPH, **changes}.items()
    }


def test_lineage_holds_everything_upstream_once_and_nothing_else() -> None:
    lineage = trace_lineage("subset", graph().get)
    ids = [artifact.artifact_id for artifact in lineage.artifacts]
    assert ids == ["subset", "sample_scores", "pool", "head_ranking", "corpus", "probe_set"]
    assert lineage.missing == ()
    assert lineage.artifact_id == "subset"


def test_every_artifact_is_looked_up_once() -> None:
    asked: list[str] = []
    artifacts = graph()

    def find(artifact_id: str) -> Artifact | None:
        asked.append(artifact_id)
        return artifacts.get(artifact_id)

    trace_lineage("subset", find)
    assert sorted(asked) == sorted(set(asked))


def test_unknown_id_is_refused() -> None:
    message = r"the id must be that of a recorded artifact, got 'subsett'; take one from the table"
    with pytest.raises(ArtifactError, match=message):
        trace_lineage("subsett", graph().get)


def test_parent_that_is_not_recorded_is_said_to_be_missing() -> None:
    lineage = trace_lineage("subset", graph(probe_set=("corpus", "probe_set-0")).get)
    assert lineage.missing == ("probe_set-0",)
    assert "probe_set-0 (not recorded)" in format_lineage(lineage)


def test_tree_names_settings_code_runs_and_what_is_used_twice() -> None:
    text = format_lineage(trace_lineage("pool", graph(pool=("corpus", "probe_set")).get))
    assert text == "\n".join(
        [
            "pool",
            "│  content v-pool, code 3, made 2026-01-02 03:04:05 UTC",
            "│  Dagster run run-1",
            '│  pool: {"a": null, "seed": 1}',
            "│  digest: d",
            "├─ corpus",
            "│     content v-corpus, code 3, made 2026-01-02 03:04:05 UTC",
            "│     Dagster run run-1",
            '│     corpus: {"a": null, "seed": 1}',
            "│     digest: d",
            "└─ probe_set",
            "   │  content v-probe_set, code 3, made 2026-01-02 03:04:05 UTC",
            "   │  Dagster run run-1",
            '   │  probe_set: {"a": null, "seed": 1}',
            "   │  digest: d",
            "   └─ corpus (see above)",
        ]
    )


def test_json_survives_a_round_trip() -> None:
    values = lineage_as_json(trace_lineage("subset", graph().get))
    assert json.loads(json.dumps(values)) == values
    first = values["artifacts"][0]
    assert first["mlflow_run_id"] == "mlflow-1"
    assert first["parents"] == ["sample_scores"]
    assert first["settings"] == {"subset": {"seed": 1, "a": None}, "digest": "d"}
    assert first["created_at"] == "2026-01-02T03:04:05+00:00"


def test_what_is_known_of_an_artifact_and_what_was_made_from_it_are_told() -> None:
    artifacts = graph()
    upstream = trace_lineage("sample_scores", artifacts.get)
    facts = {"head_ranking": {"reasoning_heads": ["0.1", "2.3"]}, "subset": {"samples": 7}}
    lineage = replace(upstream, descendants=(artifacts["subset"],), facts=facts)
    tree, below = format_lineage(lineage).split("\nmade from sample_scores:\n")
    assert "reasoning heads 0.1 2.3" in tree
    assert below == "  subset (samples 7)"
    values = lineage_as_json(lineage)
    assert [one["artifact_id"] for one in values["descendants"]] == ["subset"]
    [ranking] = [one for one in values["artifacts"] if one["artifact_id"] == "head_ranking"]
    assert ranking["facts"] == {"reasoning_heads": ["0.1", "2.3"]}
    assert json.loads(json.dumps(values)) == values


def test_the_summary_of_the_papers_checkpoint_fits_where_its_lineage_does_not() -> None:
    lineage = paper_lineage()
    assert len(format_lineage(lineage)) > 5_000
    summary = summarise_lineage(lineage, command="circuitseer lineage models:/m-1")
    assert len(summary) < MAX_SUMMARY
    assert " ..." not in summary
    said = summary.splitlines()
    assert said[0] == lineage.artifact_id
    [heads] = [line for line in said if line.startswith("heads ")]
    assert len(heads.split()) == 41
    for artifact in lineage.artifacts:
        is_nearest = not artifact.artifact_id.startswith("older")
        assert any(line.startswith(f"{artifact.artifact_id}: ") for line in said) == is_nearest
    assert said[-1] == "all of it, with settings: circuitseer lineage models:/m-1"


def test_the_summary_fits_whatever_the_lineage_holds() -> None:
    lineage = paper_lineage()
    long = {"heads": [f"{i}.{i}" for i in range(2_000)], "base_model": "\x1b" * 9_000}
    facts = {one.artifact_id: long for one in lineage.artifacts}
    stages = [
        replace(
            lineage.artifacts[0], artifact_id=f"{i}" * 99, stage=f"{i}", dagster_run_id="r" * 99
        )
        for i in range(4)
    ]
    wide = replace(lineage, artifacts=(*lineage.artifacts, *stages), facts=facts)
    assert len(summarise_lineage(wide, command="c" * 999)) < MAX_SUMMARY
