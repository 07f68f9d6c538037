"""What a finished run is worth saying in a terminal."""

from pathlib import Path
from typing import Any

from circuitseer_assets.records import MAX_LENGTH_CORRELATION
from circuitseer_assets.settings import PROJECT_ROOT, load_settings, settings_path
from jobs.reconcile import Reconciliation
from resources.home import Home

_WIDTH = 18


def summarise_run(run: Reconciliation, home: Home) -> str:
    """Returns the summary of a finished run: heads, subset, Pass@1, where things lie, what next."""
    lines = ["", f"CircuitSeer: finished in {run.duration_s:.0f} s", ""]
    rows = [
        *_done(run),
        ("corpus", f"{run.of('corpus', 'num_samples')} samples, {_pool(run)}"),
        ("reasoning heads", _heads(run)),
        ("subset", _subset(run)),
        ("training", _training(run)),
        *[("Pass@1", line) for line in _pass_at_1(run)],
        ("warnings", "; ".join(_warnings(run)) or "none"),
    ]
    lines += [f"{name:<{_WIDTH}}{text}" for name, text in rows]
    lines += ["", "Where it lies", *_places(home, run), "", "What to try next", *_next(home)]
    return "\n".join(lines)


def _done(run: Reconciliation) -> list[tuple[str, str]]:
    """Returns what was computed, and, unless it is everything, what was spared."""
    rows = [("computed", ", ".join(run.computed) or "nothing")]
    if run.reused:
        rows.append(("reused", ", ".join(run.reused)))
    if run.untouched:
        rows.append(("left as it was", ", ".join(run.untouched)))
    if run.saved_s >= 1:
        rows.append(("spared", f"about {run.saved_s:.0f} s, which these took when they were made"))
    return rows


def _pool(run: Reconciliation) -> str:
    return (
        f"{run.of('pool', 'num_samples')} in the pool after probes and decontamination "
        f"({run.of('corpus', 'num_quarantined')} rows quarantined)"
    )


def _heads(run: Reconciliation) -> str:
    heads: Any = run.of("head_ranking", "reasoning_heads")
    shown = ", ".join(heads[:8]) + (" ..." if len(heads) > 8 else "")
    return (
        f"{len(heads)} of {run.of('head_ranking', 'num_heads')} (layer.head): {shown}; "
        f"{run.of('head_ranking', 'num_unconfirmed_heads')} unconfirmed"
    )


def _subset(run: Reconciliation) -> str:
    subset = run.metadata["subset"]
    return (
        f"{subset['num_samples']} of {subset['num_pool']} samples; effective pool size "
        f"{subset['effective_pool_size']:.0f}, tilt {subset['score_tilt_sd']:+.2f} sd "
        f"(a random draw: 0 +- {subset['random_tilt_sd']:.2f})"
    )


def _training(run: Reconciliation) -> str:
    checkpoint = run.metadata["checkpoint"]
    return (
        f"{checkpoint['num_steps']} steps, loss {checkpoint['first_loss_nats']:.3f} -> "
        f"{checkpoint['final_loss_nats']:.3f} nats a token"
    )


def _pass_at_1(run: Reconciliation) -> list[str]:
    tasks: Any = run.of("evaluation", "pass_at_1")
    lines = []
    for task in tasks:
        base, tuned = task["base"], task["checkpoint"]
        only_shown = base["is_demonstration"] or tuned["is_demonstration"]
        caution = " (a demonstration, not evidence)" if only_shown else ""
        lines.append(
            f"{task['task']}: {_figure(base)} before, {_figure(tuned)} after, "
            f"{task['num_problems']} problems{caution}"
        )
    return lines


def _figure(summary: dict[str, float]) -> str:
    value, low, high = (100 * summary[name] for name in ("pass_at_1", "ci_low", "ci_high"))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _warnings(run: Reconciliation) -> list[str]:
    warnings = []
    correlation: Any = run.metadata["sample_scores"].get("score_length_spearman")
    if correlation is not None and abs(correlation) > MAX_LENGTH_CORRELATION:
        warnings.append(f"the score follows prompt length (rank correlation {correlation:+.2f})")
    if run.of("head_ranking", "num_unconfirmed_heads"):
        warnings.append("some heads are not confirmed on fresh probes")
    return warnings


def _places(home: Home, run: Reconciliation) -> list[str]:
    places = [
        ("everything", home.folder),
        ("warehouse", home.warehouse.path),
        ("subset", Path(str(run.of("subset", "folder")))),
        ("model", run.of("checkpoint", "mlflow_model_uri")),
        *([("audit", Path(str(page)))] if (page := _page(run)) else []),
        ("Dagster runs", ", ".join(run.run_ids) or "none"),
    ]
    return [f"  {name:<{_WIDTH - 2}}{_short(place)}" for name, place in places]


def _page(run: Reconciliation) -> object:
    """Returns where the audit's page lies; None where its asset was last made before it had one."""
    return run.metadata.get("audit", {}).get("report")


def _short(place: object) -> str:
    if isinstance(place, Path) and place.is_relative_to(PROJECT_ROOT):
        return str(place.relative_to(PROJECT_ROOT))
    return str(place)


def _next(home: Home) -> list[str]:
    prefix = _home_prefix(home)
    settings = _short(settings_path(home.folder))
    return [
        f"  {prefix}make dev",
        "      every asset, plot and run in the browser",
        f"  {prefix}.venv/bin/circuitseer export",
        "      the subset as JSONL, with its original columns",
        f"  {prefix}.venv/bin/circuitseer lineage",
        "      everything these figures were made from",
        f"  edit selection.budget in {settings}, then: {prefix}make run",
        "      nothing before the subset is computed twice",
    ]


def _home_prefix(home: Home) -> str:
    """Returns what a command needs in front of it to work in this home from a new shell."""
    default = (
        PROJECT_ROOT / ".circuitseer" / load_settings(PROJECT_ROOT / "circuitseer.yaml").preset
    )
    return "" if home.folder == default else f"CIRCUITSEER_HOME={_short(home.folder)} "
