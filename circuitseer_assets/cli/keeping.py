"""Commands that hand on and look after what was made: `export`, `release`, `prune`, `doctor` ..."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from circuitseer_assets.cli.terminal import (
    AsJson,
    Preset,
    console,
    examples,
    home_at,
    latest_id,
    log_to_terminal,
    print_json,
    print_table,
)
from resources.overrides import home_of

app = typer.Typer()


@app.command(
    epilog=examples(
        "circuitseer export",
        "circuitseer export subset-0123456789abcdef --format parquet --output subset.parquet",
    )
)
def export(
    subset: Annotated[str, typer.Argument(help="A subset's id, or `latest`.")] = "latest",
    format_: Annotated[
        Literal["jsonl", "parquet"], typer.Option("--format", help="The file's format.")
    ] = "jsonl",
    output: Annotated[
        Path | None, typer.Option(help="The file to write; by default one in the home's exports/.")
    ] = None,
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Write a subset's rows with their original columns, in corpus order, plus score and id."""
    from resources.export import export_subset
    from resources.home import Home

    home = Home.prepared(home_of(preset))
    subset_id = latest_id(home, "subset") if subset == "latest" else subset
    path, num_samples = export_subset(home, subset_id, format_, output)
    if as_json:
        print_json({"subset_id": subset_id, "path": str(path), "num_samples": num_samples})
        return
    console.print(f"wrote {num_samples} samples to")
    print(path)


@app.command(epilog=examples("circuitseer release solver", "circuitseer lineage models:/solver/1"))
def release(
    name: Annotated[str, typer.Argument(help="The registered model's name in MLflow.")],
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint's id, or `latest`.")] = "latest",
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Register a checkpoint in MLflow under a name; its description is its lineage."""
    from jobs.release import release_checkpoint
    from resources.home import Home

    home = Home.prepared(home_of(preset))
    checkpoint_id = latest_id(home, "checkpoint") if checkpoint == "latest" else checkpoint
    uri = release_checkpoint(home, checkpoint_id, name)
    if as_json:
        print_json({"model_uri": uri, "checkpoint_id": checkpoint_id})
        return
    console.print(f"released {checkpoint_id}; `circuitseer lineage {uri}` leads back from")
    print(uri)


@app.command(
    epilog=examples(
        "circuitseer prune --keep 3 --dry-run",
        "circuitseer prune --keep 3 --keep-subset subset-0123456789abcdef",
    )
)
def prune(
    keep: Annotated[int, typer.Option(help="How many of each stage's newest artifacts stay.")],
    keep_subset: Annotated[
        list[str] | None, typer.Option(help="A subset's id that stays, too; may be repeated.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Remove old artifacts; never what is in use, released, exported, or what these stand on."""
    home = home_at(home_of(preset))
    log_to_terminal()
    from circuitseer_assets.definitions import defs
    from jobs.prune import PRUNED_COLUMNS, describe_pruned, pruned_rows
    from jobs.prune import prune as prune_home

    kept = keep_subset or []
    done = prune_home(defs, home, num_newest=keep, keep_subsets=kept, dry_run=dry_run)
    if as_json:
        print_json(done.as_json())
        return
    print_table(PRUNED_COLUMNS, pruned_rows(done))
    print(describe_pruned(done))


@app.command(
    epilog=examples("circuitseer backup", "circuitseer backup /disk/copy --hard-links --dry-run")
)
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
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Copy the home to a folder that is a home itself; runs may go on meanwhile."""
    home = home_at(home_of(preset))
    log_to_terminal()
    from jobs.backup import back_up

    done = back_up(home, folder, hard_links=hard_links, dry_run=dry_run)
    if as_json:
        print_json(done.as_json())
        return
    console.print(f"{done.num_artifacts} artifacts, {done.num_bytes / 1e6:.1f} MB")
    for sentence in (*(f"not whole: {one}" for one in done.incomplete), *done.not_included):
        console.print(sentence, style="yellow")
    print(done.folder)


@app.command(epilog=examples("circuitseer doctor", "circuitseer doctor --repair --deep"))
def doctor(
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what is safe to mend without a decision.")
    ] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every stored file, not only its size.")
    ] = False,
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Say what is wrong with the home and what it stands on: status 1 if it keeps from running."""
    home = home_at(home_of(preset))
    from jobs.doctor import DIAGNOSIS_COLUMNS, diagnosis_rows, examine

    diagnoses = examine(home, repair=repair, is_deep=deep)
    if as_json:
        print_json([diagnosis.as_json() for diagnosis in diagnoses])
    else:
        print_table(DIAGNOSIS_COLUMNS, diagnosis_rows(diagnoses))
    raise typer.Exit(1 if any(d.outcome == "error" for d in diagnoses) else 0)
