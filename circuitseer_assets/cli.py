"""The `circuitseer` command: run the graph, export a subset, read a lineage. Thin."""

import atexit
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer
from rich.console import Console
from rich.logging import RichHandler

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.settings import settings_path
from resources.overrides import home_of, write_overrides

if TYPE_CHECKING:
    from resources.home import Home

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Pick training data for reasoning models by looking inside the model.",
)
# Bound to this stream: what libraries print is sent elsewhere while the graph runs.
console = Console(file=sys.stderr, highlight=False)

Preset = Annotated[str | None, typer.Option(help="A file of presets/, without its suffix.")]
CorpusFile = Annotated[str | None, typer.Option(help="A corpus file, in place of the preset's.")]
EvaluationFile = Annotated[
    str | None, typer.Option("--eval", help="A file of problems, in place of the preset's.")
]


@app.command()
def run(
    preset: Preset = None, corpus: CorpusFile = None, evaluation: EvaluationFile = None
) -> None:
    """Make what is missing or out of date on the settings in use, and say what came out."""
    home = _home_at(write_overrides(preset, corpus, evaluation))
    _log_to_terminal()
    from circuitseer_assets.definitions import defs
    from jobs.reconcile import reconcile
    from jobs.summary import summarise_run

    print(summarise_run(reconcile(defs, home), home))


@app.command()
def plan(preset: Preset = None) -> None:
    """Say what `run` would do with every asset, and why; nothing is made."""
    home = _home_at(home_of(preset))
    from circuitseer_assets.definitions import defs
    from jobs.plan import format_plan, make_plan

    print(format_plan(make_plan(defs, home)))


@app.command()
def sweep(preset: Preset = None) -> None:
    """Compare the base models and budgets of the settings' `sweep`, reusing all that exists."""
    home = _home_at(home_of(preset))
    _log_to_terminal()
    from circuitseer_assets.definitions import defs
    from jobs.sweep import format_sweep, run_sweep

    print(format_sweep(run_sweep(defs, home)))


@app.command()
def study(
    preset: Annotated[
        str | None, typer.Option(help="Whose study: NAME is the preset `NAME_study`.")
    ] = None,
    corpus: CorpusFile = None,
    evaluation: EvaluationFile = None,
    all_methods: Annotated[
        bool, typer.Option("--all-methods", help="Every method there is, not the settings' own.")
    ] = False,
) -> None:
    """Compare the ways to select of the settings' `study`; go on where it was stopped."""
    name = f"{preset}_study" if preset else None
    is_changed = corpus is not None or evaluation is not None
    folder = write_overrides(name, corpus, evaluation) if is_changed else home_of(name)
    home = _home_at(folder)
    _log_to_terminal()
    from circuitseer_assets.definitions import defs
    from jobs.study import report_of, run_study

    results = run_study(defs, home, all_methods=all_methods)
    print(report_of(results))
    console.print(f"report and figure: {results}")


def _home_at(folder: Path) -> "Home":
    """Returns the home at `folder`, in use from now on, after saying which settings are."""
    atexit.register(_end_quietly)
    from resources.home import Home

    home = Home.prepared(folder)
    home.set_environment()
    console.print(f"settings: {settings_path(home.folder)}")
    return home


@app.command()
def dev(preset: Preset = None) -> None:
    """Observe the settings, then start the Dagster UI and the MLflow UI on loopback."""
    from jobs.run import observe_now
    from resources.home import Home
    from resources.servers import serve

    home = Home.prepared(home_of(preset))
    changed = observe_now(home)
    console.print(f"settings observed; changed slices: {', '.join(changed) or 'none'}")
    raise typer.Exit(serve(home))


@app.command()
def export(
    subset: Annotated[str, typer.Argument(help="A subset's id, or `latest`.")] = "latest",
    format_: Annotated[
        Literal["jsonl", "parquet"], typer.Option("--format", help="The file's format.")
    ] = "jsonl",
    output: Annotated[
        Path | None, typer.Option(help="The file to write; by default one in the home's exports/.")
    ] = None,
    preset: Preset = None,
) -> None:
    """Write a subset's rows with their original columns, in corpus order, plus score and id."""
    from resources.export import export_subset
    from resources.home import Home

    home = Home.prepared(home_of(preset))
    subset_id = _latest_id(home, "subset") if subset == "latest" else subset
    path, num_samples = export_subset(home, subset_id, format_, output)
    console.print(f"wrote {num_samples} samples to")
    print(path)


@app.command()
def lineage(
    artifact: Annotated[
        str,
        typer.Argument(help="Any artifact's id, an MLflow model's URI (models:/...), or `latest`."),
    ] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
    preset: Preset = None,
) -> None:
    """Show everything an artifact was made from, and everything made from it."""
    from circuitseer_assets.method.audit import format_lineage, lineage_as_json
    from jobs.lineage import read_lineage
    from resources.home import Home

    home = Home.prepared(home_of(preset))
    traced = read_lineage(home, _latest_id(home, "audit") if artifact == "latest" else artifact)
    print(json.dumps(lineage_as_json(traced), indent=1) if as_json else format_lineage(traced))


@app.command()
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
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
    preset: Preset = None,
) -> None:
    """Show what the reasoning heads look at in a sample, its score, its rank and its draw."""
    from circuitseer_assets.method.explanation import explanation_as_json, format_explanation
    from resources.sample_explanation import explain_sample
    from resources.subset_chain import SubsetChain

    home = _home_at(home_of(preset))
    subset_id = _latest_id(home, "subset") if subset == "latest" else subset
    explanation = explain_sample(SubsetChain.of(home, subset_id), sample)
    if html is not None:
        from circuitseer_assets.method.report_page import render_explanation

        html.write_text(render_explanation(explanation), encoding="utf-8")
        console.print("wrote the page to")
        print(html.resolve())
    elif as_json:
        print(json.dumps(explanation_as_json(explanation), indent=1, ensure_ascii=False))
    else:
        Console().print(format_explanation(explanation))


@app.command()
def report(
    artifact: Annotated[
        str,
        typer.Argument(help="An audit's id, that of what it was made from, or `latest`."),
    ] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of the path.")] = False,
    preset: Preset = None,
) -> None:
    """Print where the audit's page lies: one HTML file that tells the whole run."""
    from resources.home import Home
    from resources.report_files import find_report

    home = Home.prepared(home_of(preset))
    audit_id, path = find_report(
        home, _latest_id(home, "audit") if artifact == "latest" else artifact
    )
    print(json.dumps({"audit_id": audit_id, "path": str(path)}) if as_json else path)


@app.command()
def release(
    name: Annotated[str, typer.Argument(help="The registered model's name in MLflow.")],
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's id, or `latest`.")] = "latest",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
    preset: Preset = None,
) -> None:
    """Register a checkpoint in MLflow under a name; its description is its lineage."""
    from jobs.release import release_checkpoint
    from resources.home import Home

    home = Home.prepared(home_of(preset))
    checkpoint_id = _latest_id(home, "checkpoint") if checkpoint == "latest" else checkpoint
    uri = release_checkpoint(home, checkpoint_id, name)
    if as_json:
        print(json.dumps({"model_uri": uri, "checkpoint_id": checkpoint_id}))
        return
    console.print(f"released {checkpoint_id}; `circuitseer lineage {uri}` leads back from")
    print(uri)


@app.command()
def prune(
    keep: Annotated[int, typer.Option(help="How many of each stage's newest artifacts stay.")],
    keep_subset: Annotated[
        list[str] | None, typer.Option(help="A subset's id that stays, too; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
    preset: Preset = None,
) -> None:
    """Remove old artifacts; never what is in use, released, exported, or what these stand on."""
    home = _home_at(home_of(preset))
    _log_to_terminal()
    from circuitseer_assets.definitions import defs
    from jobs.prune import format_pruned
    from jobs.prune import prune as prune_home

    kept = keep_subset or []
    done = prune_home(defs, home, num_newest=keep, keep_subsets=kept, dry_run=dry_run)
    print(json.dumps(done.as_json(), indent=1) if as_json else format_pruned(done))


@app.command()
def backup(
    folder: Annotated[
        Path | None,
        typer.Argument(help="Not there yet; by default beside the home: backups/NAME-TIME."),
    ] = None,
    hard_links: Annotated[
        bool,
        typer.Option("--hard-links", help="Share what never changes with the home, on its disk."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what it would hold.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
    preset: Preset = None,
) -> None:
    """Copy the home to a folder that is a home itself; runs may go on meanwhile."""
    home = _home_at(home_of(preset))
    _log_to_terminal()
    from jobs.backup import back_up

    done = back_up(home, folder, hard_links=hard_links, dry_run=dry_run)
    if as_json:
        print(json.dumps(done.as_json(), indent=1))
        return
    console.print(f"{done.num_artifacts} artifacts, {done.num_bytes / 1e6:.1f} MB")
    for sentence in (*(f"not whole: {one}" for one in done.incomplete), *done.not_included):
        console.print(sentence, style="yellow")
    print(done.folder)


def _latest_id(home: "Home", asset: str) -> str:
    """Returns the id of what an asset last materialised: after going back, not the newest made."""
    import dagster as dg

    from circuitseer_assets.assets.stage import latest_artifact

    home.set_environment()
    with dg.DagsterInstance.get() as instance:
        return latest_artifact(instance, home, asset).artifact_id


def main() -> None:
    """Runs the command; what CircuitSeer refuses ends in one sentence and exit status 2."""
    try:
        app()
    except CircuitSeerError as error:
        _refuse(str(error))
    except OSError as error:
        # A folder that cannot be written or read: the system's own words name it and the reason.
        _refuse(f"{error.filename or 'the system'}: {error.strerror or error}; free or correct it")


def _refuse(sentence: str) -> NoReturn:
    console.print(f"circuitseer: {sentence}", style="red", markup=False, soft_wrap=True)
    sys.exit(2)


def _end_quietly() -> None:
    # While Python shuts down, duckdb's binding lists objects that torch still holds, by the page.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _log_to_terminal() -> None:
    logger = logging.getLogger("circuitseer")
    logger.setLevel(logging.INFO)
    logger.addHandler(
        RichHandler(console=console, show_path=False, show_level=False, log_time_format="%H:%M:%S")
    )
    logger.propagate = False
