"""Stage audit: everything the evaluation's figures were made from, in one place and on one page."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg

from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.audit import Lineage, format_lineage, lineage_as_json, trace_lineage
from circuitseer_assets.method.report_page import render_report
from circuitseer_assets.records import Artifact, artifact_id_of
from resources.home import Home
from resources.lineage_facts import read_facts
from resources.report_data import read_report
from resources.report_files import REPORT_FILE

CODE_VERSION = "5"


@dg.asset(
    group_name="audit",
    kinds={"json", "html"},
    deps=["evaluation", settings_key("base_model")],
    code_version=CODE_VERSION,
    description="Everything upstream of the evaluation: settings, models, heads, seeds and runs; "
    "and the whole run as one page of HTML.",
)
def audit(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
    """Writes the lineage of the latest evaluation, and the page that tells the run."""
    run = StageRun.of(context, home, "base_model")
    done = make_audit(run)
    page = done.folder / REPORT_FILE
    return run.result(
        done,
        lineage_command=dg.MetadataValue.text(f"circuitseer lineage {done.artifact.parents[0]}"),
        report=dg.MetadataValue.path(str(page)),
        report_link=dg.MetadataValue.url(_page_in_mlflow(run.home, done.artifact)),
    )


def _page_in_mlflow(home: Home, audit: Artifact) -> str:
    """Returns the page's address in MLflow: no browser follows a link from a page to a file."""
    if audit.mlflow_run_id is None:
        raise ArtifactError(
            f"{audit.artifact_id} must name the MLflow run that its page is logged with, got none; "
            f"restore the warehouse from a backup"
        )
    path = f"audit/{audit.artifact_id}/{REPORT_FILE}"
    return home.tracking().file_url(audit.mlflow_run_id, path)


def make_audit(run: StageRun) -> Materialised:
    """Returns the lineage of the latest evaluation, with its page."""
    evaluation = run.parent("evaluation")
    audit_id = artifact_id_of("audit", {}, [evaluation.artifact_id], CODE_VERSION)
    return run.reuse_or_make(
        "audit",
        {},
        [evaluation],
        lambda folder: _write(run, _trace(run.home, evaluation), audit_id, folder),
        code_version=CODE_VERSION,
    )


def _trace(home: Home, evaluation: Artifact) -> Lineage:
    lineage = trace_lineage(evaluation.artifact_id, home.warehouse.find_artifact)
    return replace(lineage, facts=read_facts(home.warehouse, lineage.artifacts))


def _write(run: StageRun, lineage: Lineage, audit_id: str, folder: Path) -> Made:
    text = format_lineage(lineage)
    (folder / "lineage.txt").write_text(text)
    (folder / "lineage.json").write_text(json.dumps(lineage_as_json(lineage), indent=1))
    page = folder / REPORT_FILE
    page.write_text(render_report(read_report(run.home, lineage, audit_id)), encoding="utf-8")
    # Beside the training it tells of, so that whoever looks at the model finds it.
    checkpoint = next(one for one in lineage.artifacts if one.stage == "checkpoint")
    training_run = checkpoint.mlflow_run_id
    if training_run is None:
        raise ArtifactError(
            f"{checkpoint.artifact_id} must name the MLflow run of its training, got none; "
            f"change training.seed, then `make run`, which trains anew"
        )
    run.home.tracking().log_file(training_run, page, f"audit/{audit_id}")
    return Made(
        data=["lineage.json"],
        summary={"lineage_md": f"```text\n{text}\n```"},
        mlflow_run_id=training_run,
    )
