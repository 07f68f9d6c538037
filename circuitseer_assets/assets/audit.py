"""Stage audit: everything the evaluation's figures were made from, in one place."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.method.audit import Lineage, format_lineage, lineage_as_json, trace_lineage
from circuitseer_assets.records import Artifact
from resources.home import Home
from resources.lineage_facts import read_facts

CODE_VERSION = "2"


@dg.asset(
    group_name="audit",
    kinds={"json"},
    deps=["evaluation"],
    code_version=CODE_VERSION,
    description="Everything upstream of the evaluation: settings, models, heads, seeds and runs.",
)
def audit(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
    """Writes the lineage of the latest evaluation."""
    run = StageRun.of(context, home)
    done = make_audit(run)
    command = f"circuitseer lineage {done.artifact.parents[0]}"
    return run.result(done, lineage_command=dg.MetadataValue.text(command))


def make_audit(run: StageRun) -> Materialised:
    """Returns the lineage of the latest evaluation."""
    evaluation = run.parent("evaluation")
    return run.reuse_or_make(
        "audit",
        {},
        [evaluation],
        lambda folder: _write(_trace(run.home, evaluation), folder),
        code_version=CODE_VERSION,
    )


def _trace(home: Home, evaluation: Artifact) -> Lineage:
    lineage = trace_lineage(evaluation.artifact_id, home.warehouse.find_artifact)
    return replace(lineage, facts=read_facts(home.warehouse, lineage.artifacts))


def _write(lineage: Lineage, folder: Path) -> Made:
    text = format_lineage(lineage)
    (folder / "lineage.txt").write_text(text)
    (folder / "lineage.json").write_text(json.dumps(lineage_as_json(lineage), indent=1))
    return Made(data=["lineage.json"], summary={"lineage_md": f"```text\n{text}\n```"})
