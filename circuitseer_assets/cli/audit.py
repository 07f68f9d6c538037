"""Commands that ask what was made from what, and whether it still is: `lineage`, `verify` ..."""

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
    print_table,
)
from resources.overrides import home_of

app = typer.Typer()
AnyArtifact = Annotated[
    str,
    typer.Argument(help="Any artifact's id, an MLflow model's URI (models:/...), or `latest`."),
]


@app.command(
    epilog=examples(
        "circuitseer lineage",
        "circuitseer lineage subset-0123456789abcdef --json",
        "circuitseer lineage models:/solver/1",
    )
)
def lineage(
    artifact: AnyArtifact = "latest",
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
    if as_json:
        written = {} if html is None else {"path": str(html.resolve())}
        print_json({**written, **explanation_as_json(explanation)})
    elif html is not None:
        console.print("wrote the page to")
        print(html.resolve())
    else:
        Console().print(format_explanation(explanation))


@app.command(
    epilog=examples(
        "circuitseer report",
        "circuitseer report evaluation-0123456789abcdef",
        "circuitseer report models:/solver/1",
    )
)
def report(
    artifact: AnyArtifact = "latest",
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Print where the audit's page lies: one HTML file that tells the whole run."""
    from jobs.lineage import resolve_artifact
    from resources.home import Home
    from resources.report_files import find_report

    home = Home.prepared(home_of(preset))
    artifact_id = latest_id(home, "audit") if artifact == "latest" else artifact
    audit_id, path = find_report(home, resolve_artifact(home, artifact_id))
    if as_json:
        print_json({"audit_id": audit_id, "path": str(path)})
    else:
        print(path)


@app.command(
    epilog=examples(
        "circuitseer verify",
        "circuitseer verify models:/solver/1 --samples 100 --json",
        "circuitseer verify subset-0123456789abcdef --skip settings --skip scores --skip heads",
    )
)
def verify(
    artifact: AnyArtifact = "latest",
    samples: Annotated[int, typer.Option(help="How many samples are scored again.")] = 16,
    heads: Annotated[int, typer.Option(help="How many chosen heads are ablated again.")] = 2,
    seed: Annotated[
        int | None, typer.Option(help="Of the lots that these are drawn by; by chance if left out.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option(help="A check that is not made; may be repeated.")
    ] = None,
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Check that an artifact, and all it was made from, is what it was.

    Status 1: something differs. Status 3: nothing does, but a check that was not skipped could not
    be made.
    """
    home = home_at(home_of(preset))
    from circuitseer_assets.method.verification import conclusion, verification_rows
    from jobs.verify import verify as verify_artifact

    name = latest_id(home, "audit") if artifact == "latest" else artifact
    done = verify_artifact(
        home, name, num_samples=samples, num_heads=heads, seed=seed, skip=skip or []
    )
    if as_json:
        print_json(done.as_json())
    else:
        print_table(["check", "outcome", "what"], verification_rows(done))
        print(conclusion(done))
    raise typer.Exit(done.exit_status)


@app.command(
    epilog=examples(
        "circuitseer diff subset-0123456789abcdef latest", "circuitseer diff A B --json"
    )
)
def diff(
    before: Annotated[str, typer.Argument(help="A subset's id, or `latest`.")],
    after: Annotated[str, typer.Argument(help="Another subset's id, or `latest`.")] = "latest",
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Say what lies between two subsets: heads, samples and why, scores, settings.

    Status 0 whatever that is; `is_same` in the JSON says whether heads and samples are the same.
    """
    home = home_at(home_of(preset))
    from jobs.diff import describe_difference, diff_rows, diff_subsets

    found = diff_subsets(
        home, *(latest_id(home, "subset") if one == "latest" else one for one in (before, after))
    )
    if as_json:
        print_json(found.as_json())
        return
    print_table(["why", "came in", "went out"], diff_rows(found))
    for line in describe_difference(found):
        print(line)
