"""Commands that ask what was made from what, and why: `lineage`, `explain` and `report`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from circuitseer_assets.cli.terminal import (
    AsJson,
    Preset,
    console,
    examples,
    home_at,
    latest_id,
    print_json,
)
from resources.overrides import home_of

app = typer.Typer()


@app.command(
    epilog=examples(
        "circuitseer lineage",
        "circuitseer lineage subset-0123456789abcdef --json",
        "circuitseer lineage models:/solver/1",
    )
)
def lineage(
    artifact: Annotated[
        str,
        typer.Argument(help="Any artifact's id, an MLflow model's URI (models:/...), or `latest`."),
    ] = "latest",
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Show everything an artifact was made from, and everything made from it."""
    from circuitseer_assets.method.audit import format_lineage, lineage_as_json
    from jobs.lineage import read_lineage
    from resources.home import Home

    home = Home.prepared(home_of(preset))
    traced = read_lineage(home, latest_id(home, "audit") if artifact == "latest" else artifact)
    if as_json:
        print_json(lineage_as_json(traced))
    else:
        print(format_lineage(traced))


@app.command(
    epilog=examples(
        "circuitseer explain 3f2a91",
        "circuitseer explain train.jsonl:17 --html sample.html",
    )
)
def explain(
    sample: Annotated[
        str,
        typer.Argument(
            metavar="SAMPLE_ID", help="A sample's id, its beginning, or SOURCE:POSITION of a row."
        ),
    ],
    subset: Annotated[
        str, typer.Option(help="By whose scores it is ranked; a subset's id, or `latest`.")
    ] = "latest",
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a page of its own to this file.")
    ] = None,
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Show what the reasoning heads look at in a sample, its score, its rank and its draw."""
    from circuitseer_assets.method.explanation import explanation_as_json, format_explanation
    from resources.sample_explanation import explain_sample
    from resources.subset_chain import SubsetChain

    home = home_at(home_of(preset))
    subset_id = latest_id(home, "subset") if subset == "latest" else subset
    explanation = explain_sample(SubsetChain.of(home, subset_id), sample)
    if html is not None:
        from circuitseer_assets.method.report_page import render_explanation

        html.write_text(render_explanation(explanation), encoding="utf-8")
        console.print("wrote the page to")
        print(html.resolve())
    elif as_json:
        print_json(explanation_as_json(explanation))
    else:
        Console().print(format_explanation(explanation))


@app.command(
    epilog=examples("circuitseer report", "circuitseer report evaluation-0123456789abcdef")
)
def report(
    artifact: Annotated[
        str,
        typer.Argument(help="An audit's id, that of what it was made from, or `latest`."),
    ] = "latest",
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Print where the audit's page lies: one HTML file that tells the whole run."""
    from resources.home import Home
    from resources.report_files import find_report

    home = Home.prepared(home_of(preset))
    audit_id, path = find_report(
        home, latest_id(home, "audit") if artifact == "latest" else artifact
    )
    if as_json:
        print_json({"audit_id": audit_id, "path": str(path)})
    else:
        print(path)
