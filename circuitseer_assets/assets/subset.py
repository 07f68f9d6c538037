"""Stage subset: scores become weights, and the budget is drawn in proportion to them."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Made, Materialised, StageRun, latest_artifact
from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.figures import draw_score_histogram, to_markdown_image
from circuitseer_assets.method.subset import summarize_draw
from circuitseer_assets.method.subset_changes import Draw, explain_changes, format_changes
from circuitseer_assets.method.weights import (
    freeze_strata,
    strata_from_table,
    strata_table,
    weigh_samples,
)
from circuitseer_assets.records import Artifact, artifact_id_of
from circuitseer_assets.settings import SelectionSettings
from resources.draw import draw_subset
from resources.home import Home

CODE_VERSION = "1"
MEMBERS_FILE = "subset_members.parquet"
STRATA_FILE = "length_strata.parquet"


@dg.asset(
    group_name="subset",
    kinds={"duckdb", "parquet"},
    deps=["sample_scores", settings_key("selection")],
    code_version=CODE_VERSION,
    description="The samples drawn for fine-tuning, with all that decided their place in the draw.",
)
def subset(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
    """Draws the subset."""
    run = StageRun.of(context, home, "selection")
    done = make_subset(run)
    subset_id = done.artifact.artifact_id
    command = f"CIRCUITSEER_HOME={home.folder} circuitseer export {subset_id} --format jsonl"
    return run.result(
        done,
        export=dg.MetadataValue.text(command),
        **_changes_since(run, _subset_in_use(run, context.instance), done.artifact),
    )


def _subset_in_use(run: StageRun, instance: dg.DagsterInstance) -> Artifact | None:
    """Returns what the asset materialised before this run; None where nothing is left of it."""
    try:
        before = latest_artifact(instance, run.home, "subset")
        made_from = [before, run.ancestor(before, "sample_scores")]
    except ArtifactError:
        return None
    present = (run.home.artifacts.is_present(a.stage, a.artifact_id) for a in made_from)
    return before if all(present) else None


def _changes_since(run: StageRun, before: Artifact | None, after: Artifact) -> dict[str, Any]:
    """Returns who came in, went out and stayed since another subset, and why."""
    if before is None:
        return {}
    members = [
        pq.read_table(run.folder(subset) / MEMBERS_FILE, columns=["sample_id"])["sample_id"]
        for subset in (before, after)
    ]
    # Whoever was in neither can have changed nothing.
    either = pa.chunked_array([*members[0].chunks, *members[1].chunks], pa.string())
    changes = explain_changes(
        *(
            _read_draw(run, subset, own, either)
            for subset, own in zip((before, after), members, strict=True)
        )
    )
    return {
        "since_subset": dg.MetadataValue.text(before.artifact_id),
        "num_added": dg.MetadataValue.int(len(changes.added)),
        "num_removed": dg.MetadataValue.int(len(changes.removed)),
        "num_kept": dg.MetadataValue.int(changes.num_kept),
        "added": dg.MetadataValue.json(Counter(changes.added.values())),
        "removed": dg.MetadataValue.json(Counter(changes.removed.values())),
        "changes": dg.MetadataValue.md(format_changes(changes)),
    }


def _read_draw(
    run: StageRun, subset: Artifact, members: pa.ChunkedArray, either: pa.ChunkedArray
) -> Draw:
    pool = _read_scores(run, run.ancestor(subset, "sample_scores"))
    pool = pool.filter(pc.is_in(pool["sample_id"], value_set=either))
    return Draw(
        SelectionSettings.model_validate_json(json.dumps(subset.settings["selection"])),
        dict(zip(pool["sample_id"].to_pylist(), pool["score"].to_pylist(), strict=True)),
        frozenset(members.to_pylist()),
    )


def make_subset(run: StageRun) -> Materialised:
    """Returns the subset drawn by the latest scores."""
    scores = run.parent("sample_scores")
    identity = {"selection": run.settings.slice("selection")}
    subset_id = artifact_id_of("subset", identity, [scores.artifact_id], CODE_VERSION)
    strata = [] if run.settings.selection.debias == "none" else [_freeze_strata(run, scores)]
    return run.reuse_or_make(
        "subset",
        identity,
        [scores],
        lambda folder: _draw(run, scores, strata, subset_id, folder),
        code_version=CODE_VERSION,
        also_from=[frozen.artifact for frozen in strata],
    )


def _draw(
    run: StageRun,
    scores: Artifact,
    strata: Sequence[Materialised],
    subset_id: str,
    folder: Path,
) -> Made:
    selection = run.settings.selection
    frozen = [pq.read_table(done.folder / STRATA_FILE) for done in strata]
    pool = weigh_samples(
        _read_scores(run, scores),
        selection,
        strata_from_table(frozen[0]) if frozen else (),
    )
    members = draw_subset(pool, selection)
    pq.write_table(members, folder / MEMBERS_FILE)
    image = draw_score_histogram(pool["score"].to_numpy(), members["score"].to_numpy())
    return Made(
        data=[MEMBERS_FILE],
        summary={
            "score_histogram_md": to_markdown_image(image, "scores of the pool and of the subset"),
            **asdict(summarize_draw(pool, members)),
        },
        rows={
            "subset_members": members.add_column(
                0, "subset_id", pa.array([subset_id] * members.num_rows, pa.string())
            )
        },
    )


def _freeze_strata(run: StageRun, scores: Artifact) -> Materialised:
    """Returns the length strata of this scorer, as they were at its first draw."""

    def freeze(folder: Path) -> Made:
        strata = freeze_strata(_read_scores(run, scores))
        pq.write_table(strata_table(strata), folder / STRATA_FILE)
        return Made(data=[STRATA_FILE], summary={"num_strata": len(strata)})

    scorer = {"scorer_id": scores.settings["scorer_id"]}
    return run.reuse_or_make("length_strata", scorer, [], freeze, code_version=CODE_VERSION)


def _read_scores(run: StageRun, scores: Artifact) -> pa.Table:
    return pq.read_table(run.folder(scores) / "scores.parquet")
