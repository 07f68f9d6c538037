"""Commands that make things, or say what making them takes: `run`, `plan`, `estimate` ..."""

from pathlib import Path
from typing import Annotated

import typer

from circuitseer_assets.cli.terminal import (
    AsJson,
    CorpusFile,
    EvaluationFile,
    Preset,
    console,
    examples,
    home_at,
    log_to_terminal,
    print_json,
    print_table,
)
from resources.overrides import home_of, write_overrides

app = typer.Typer()


@app.command(
    epilog=examples(
        "circuitseer run",
        "circuitseer run --preset gsm8k --corpus train.jsonl --eval test.jsonl",
    )
)
def run(
    preset: Preset = None,
    corpus: CorpusFile = None,
    evaluation: EvaluationFile = None,
    as_json: AsJson = False,
) -> None:
    """Make what is missing or out of date on the settings in use, and say what came out."""
    home = home_at(write_overrides(preset, corpus, evaluation))
    log_to_terminal()
    from circuitseer_assets.definitions import defs
    from jobs.reconcile import reconcile
    from jobs.summary import summarise_run

    done = reconcile(defs, home)
    if as_json:
        print_json(done.as_json())
    else:
        print(summarise_run(done, home))


@app.command(epilog=examples("circuitseer plan", "circuitseer plan --json"))
def plan(preset: Preset = None, as_json: AsJson = False) -> None:
    """Say what `run` would do with every asset, and why; nothing is made."""
    home = home_at(home_of(preset))
    from circuitseer_assets.definitions import defs
    from jobs.plan import make_plan

    steps = make_plan(defs, home)
    if as_json:
        print_json([step.as_json() for step in steps])
    else:
        print_table(["asset", "would", "because"], [(s.asset, s.said, s.reason) for s in steps])


@app.command(
    epilog=examples(
        "circuitseer estimate --preset paper --gpu H100",
        "circuitseer estimate --gpu A100-80GB --rows 1000000 --response-tokens 900",
    )
)
def estimate(
    gpu: Annotated[str, typer.Option(help="By whose data sheet hours are told.")] = "H100",
    rows: Annotated[int | None, typer.Option(help="How many rows the corpus has.")] = None,
    prompt_tokens: Annotated[float, typer.Option(help="A prompt's mean length.")] = 110,
    response_tokens: Annotated[float, typer.Option(help="A response's mean length.")] = 1000,
    config: Annotated[
        Path | None, typer.Option(help="A config.json, of a model on the hub that is not known.")
    ] = None,
    as_json: AsJson = False,
    preset: Preset = None,
) -> None:
    """Say what a run would take: tokens, FLOPs, memory, GPU-hours, disk; nothing is downloaded."""
    from circuitseer_assets.method.estimate import ESTIMATE_COLUMNS, estimate_as_json, estimate_rows
    from jobs.estimate import estimate_settings
    from resources.overrides import settings_of

    done = estimate_settings(
        settings_of(preset),
        gpu=gpu,
        rows=rows,
        prompt_tokens=prompt_tokens,
        response_tokens=response_tokens,
        config=config,
    )
    if as_json:
        print_json(estimate_as_json(done))
        return
    print_table(ESTIMATE_COLUMNS, estimate_rows(done))
    console.print(f"on {done.gpu.name}, one GPU or the sum of several; assumed:")
    for assumption in done.assumptions:
        console.print(f"- {assumption}")


@app.command(epilog=examples("circuitseer sweep", "circuitseer sweep --json"))
def sweep(preset: Preset = None, as_json: AsJson = False) -> None:
    """Compare the base models and budgets of the settings' `sweep`, reusing all that exists."""
    home = home_at(home_of(preset))
    log_to_terminal()
    from dataclasses import asdict

    from circuitseer_assets.definitions import defs
    from jobs.sweep import SWEEP_COLUMNS, run_sweep, sweep_rows

    cells = run_sweep(defs, home)
    if as_json:
        print_json([asdict(cell) for cell in cells])
    else:
        print_table(SWEEP_COLUMNS, sweep_rows(cells))


@app.command(
    epilog=examples(
        "circuitseer study --preset tiny",
        "circuitseer study --preset tiny --all-methods",
        "circuitseer study --preset smollm2 --corpus train.jsonl --eval test.jsonl",
    )
)
def study(
    preset: Annotated[
        str | None, typer.Option(help="Whose study: NAME is the preset `NAME_study`.")
    ] = None,
    corpus: CorpusFile = None,
    evaluation: EvaluationFile = None,
    all_methods: Annotated[
        bool, typer.Option("--all-methods", help="Every method there is, not the settings' own.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare the ways to select of the settings' `study`; go on where it was stopped."""
    name = f"{preset}_study" if preset else None
    is_changed = corpus is not None or evaluation is not None
    folder = write_overrides(name, corpus, evaluation) if is_changed else home_of(name)
    home = home_at(folder)
    log_to_terminal()
    from circuitseer_assets.definitions import defs
    from jobs.study import comparisons_of, report_of, run_study

    results = run_study(defs, home, all_methods=all_methods)
    if as_json:
        print_json({"folder": str(results), "comparisons": comparisons_of(results)})
    else:
        print(report_of(results))
    console.print(f"report and figure: {results}")


@app.command(epilog=examples("circuitseer dev", "circuitseer dev --dagster-port 3001"))
def dev(
    dagster_port: Annotated[int, typer.Option(help="Of the Dagster UI.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Of the MLflow UI.")] = 5000,
    host: Annotated[str, typer.Option(help="The address both listen on.")] = "127.0.0.1",
    preset: Preset = None,
) -> None:
    """Observe the settings, then start the Dagster UI and the MLflow UI on loopback."""
    log_to_terminal()
    from jobs.run import observe_now
    from resources.home import Home
    from resources.servers import serve

    home = Home.prepared(home_of(preset))
    changed = observe_now(home)
    console.print(f"settings observed; changed slices: {', '.join(changed) or 'none'}")
    raise typer.Exit(serve(home, host=host, dagster_port=dagster_port, mlflow_port=mlflow_port))
