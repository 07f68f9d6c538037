"""Counts and times what a changed budget, and 1 % new rows, cost against the first curation.

    python -m bench.recuration --model tiny

A home of its own gets the preset's base model and a file of problems. `curate` runs once, the
budget is changed, and 1 % of new rows are appended; after each change `make run` reconciles. Times
are of the steps, without imports (all done before) and without loading the model.
"""

import argparse
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import dagster as dg
import pyarrow.parquet as pq
import torch
import yaml

from bench.measure import log, print_result, start_logging
from bench.models import CACHE, MODELS
from circuitseer_assets.method.weights import weigh_samples
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    Budget,
    SelectionSettings,
    Settings,
    load_settings,
)
from resources.corpora import columns_of, read_rows
from resources.draw import draw_subset

CURATE = ("corpus", "probe_set", "head_ranking", "sample_scores", "subset")
NEW_SHARE = 0.01
NUM_DRAWS = 20
# A step costs a second or two whatever it does: too few rows of a small model measure only that.
NUM_ROWS = {"tiny": 20_000, "smollm2": 2_200}
# Training and evaluation follow a changed subset; they are not what is measured here.
SHORT = {
    "training": {"max_steps": 2, "batch_size": 4, "max_length": 512},
    "evaluation": {"tasks": ["word_problems"], "max_new_tokens": 8, "max_problems": 8},
    "decontamination": {"benchmarks": [{"task": "word_problems", "num_problems": 24}]},
}


class Watch:
    """What ranking, scoring and the loading of models did since the last `start`."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Begins to count anew."""
        self.forwards = self.rows_scored = 0
        self.load_s: dict[str, float] = dict.fromkeys(("head_ranking", "sample_scores"), 0.0)
        self._inside = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Returns a context in which all of it is counted."""
        from circuitseer_assets.assets import head_ranking as ranking_asset
        from circuitseer_assets.assets import pool_scorer
        from circuitseer_assets.method import head_ranking, sample_scores

        with contextlib.ExitStack() as stack:
            for name, module in (("head_ranking", ranking_asset), ("sample_scores", pool_scorer)):
                load = self._timed(name, module.load_language_model)
                stack.enter_context(mock.patch.object(module, "load_language_model", load))
            rank, score = head_ranking.rank_heads, sample_scores.score_samples
            ranked = self._ranked(rank)
            stack.enter_context(mock.patch.object(head_ranking, "rank_heads", ranked))
            scored = self._scored(score)
            stack.enter_context(mock.patch.object(sample_scores, "score_samples", scored))
            hook = torch.nn.modules.module.register_module_forward_pre_hook(self._count)
            stack.callback(hook.remove)
            yield

    def _timed(self, name: str, load: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return load(*args, **kwargs)
            finally:
                self.load_s[name] += time.perf_counter() - started

        return timed

    def _ranked(self, rank: Callable[..., Any]) -> Callable[..., Any]:
        def ranked(*args: Any, **kwargs: Any) -> Any:
            self._inside += 1
            try:
                return rank(*args, **kwargs)
            finally:
                self._inside -= 1

        return ranked

    def _scored(self, score: Callable[..., Any]) -> Callable[..., Any]:
        def scored(*args: Any, **kwargs: Any) -> Iterator[Any]:
            self._inside += 1
            try:
                for result in score(*args, **kwargs):
                    self.rows_scored += 1
                    yield result
            finally:
                self._inside -= 1

        return scored

    def _count(self, module: torch.nn.Module, args: Any) -> None:
        self.forwards += bool(self._inside) and module.__class__.__name__.endswith("DecoderLayer")


def main() -> None:
    """Measures one model and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, required=True)
    parser.add_argument("--rows", type=int, help="rows of the first corpus")
    arguments = parser.parse_args()
    start_logging()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(arguments.model, arguments.rows or NUM_ROWS[arguments.model], Path(folder))
    print_result(result, started=started, libraries=("torch", "transformers", "dagster", "duckdb"))


def measure(name: str, num_rows: int, folder: Path) -> dict[str, Any]:
    """Returns what the two changes computed and how long their steps took, as shares."""
    os.environ["CIRCUITSEER_HOME"] = str(folder / "home")
    import_everything()
    from circuitseer_assets.definitions import make_definitions
    from jobs.reconcile import reconcile
    from jobs.run import run_job
    from resources.home import Home

    settings = load_settings(PROJECT_ROOT / "presets" / f"{name}.yaml")
    num_new = round(NEW_SHARE * num_rows)
    rows = make_rows(settings, num_rows + num_new)
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(rows[:num_rows]))
    home = Home.prepared(folder / "home")
    home.models.parent.mkdir(exist_ok=True)
    CACHE.mkdir(exist_ok=True)
    home.models.symlink_to(CACHE)
    write_settings(home.folder, settings, corpus, fraction=0.1)
    defs = make_definitions(home)
    watch = Watch()
    with watch.watching():
        first = run_job(defs, home, "curate")
        if not watch.forwards or not watch.rows_scored:
            raise RuntimeError("the first curation must be seen to rank and score, and was not")
        full_s = sum(seconds_of(first.run_id, CURATE).values()) - sum(watch.load_s.values())
        log.info("curated in %.1f s; pool %d", full_s, first.of("pool", "num_samples"))

        watch.start()
        write_settings(home.folder, settings, corpus, fraction=0.12)
        budget = reconcile(defs, home)
        budget_s = step_seconds(budget.run_ids, "subset")
        budget_forwards = watch.forwards
        log.info("budget changed: %.2f s, computed %s", budget_s, budget.computed)

        watch.start()
        corpus.write_text("".join(rows))
        grown = reconcile(defs, home)
        scoring_s = step_seconds(grown.run_ids, "sample_scores")
        scoring_s -= watch.load_s["sample_scores"]
        log.info("%d new rows: %.2f s, computed %s", num_new, scoring_s, grown.computed)
    num_pool = grown.of("pool", "num_samples")
    num_new_in_pool = num_pool - first.of("pool", "num_samples")
    return {
        "model": name,
        "pool_rows": num_pool,
        "budget_change_forwards": budget_forwards,
        "budget_change_share": budget_s / full_s,
        "one_percent_new_rows": num_new_in_pool,
        "one_percent_rows_scored": watch.rows_scored,
        "one_percent_rows_scored_amiss": abs(watch.rows_scored - num_new_in_pool),
        "one_percent_rows_scored_share": watch.rows_scored / num_pool,
        "one_percent_reused": 1 - watch.rows_scored / num_pool,
        "one_percent_scoring_share": scoring_s / full_s,
        "one_percent_displaced_share": grown.of("subset", "num_removed")
        / budget.of("subset", "num_samples"),
        "one_percent_displaced_share_fixed_samples": share_displaced(
            Path(budget.of("sample_scores", "folder")), Path(grown.of("sample_scores", "folder"))
        ),
        "full_curation_s": full_s,
        "budget_change_s": budget_s,
        "one_percent_scoring_s": scoring_s,
        "budget_change_untouched": budget.untouched,
        "one_percent_untouched": grown.untouched,
    }


def import_everything() -> None:
    """Imports what the steps would, so that no step's time has it."""
    import lm_eval  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import mlflow  # noqa: F401

    from circuitseer_assets.method import checkpoint, head_ranking, sample_scores  # noqa: F401


def make_rows(settings: Settings, count: int) -> list[str]:
    """Returns so many problems of the preset's corpus as lines of JSON, no two prompts equal."""
    more = settings.corpus.model_copy(update={"num_samples": 2 * count, "max_rows": None})
    columns = columns_of(more)
    lines: dict[str, str] = {}
    for _, _, row in read_rows(more):
        prompt, response = row[columns.prompt], row[columns.response]
        lines.setdefault(prompt, json.dumps({"prompt": prompt, "response": response}) + "\n")
    return list(lines.values())[:count]


def write_settings(home: Path, settings: Settings, corpus: Path, *, fraction: float) -> None:
    """Makes the preset, with a file as its corpus and this budget, the settings of the home."""
    values = settings.model_dump(mode="json", exclude_unset=True)
    values["corpus"] = {
        "source": "files",
        "paths": [str(corpus)],
        "columns": {"prompt": "prompt", "response": "response"},
    }
    values["selection"]["budget"] = {"fraction": fraction}
    (home / "settings.yaml").write_text(yaml.safe_dump({**values, **SHORT}))


def share_displaced(before: Path, after: Path) -> float:
    """Returns the share of a subset of a fixed number of samples that the new scores displace.

    A budget of a share grows with the pool, and may displace nobody; here every new member takes
    an old one's place. It is a mean over seeds, of a tenth of the first pool drawn from both.
    """
    pools = [pq.read_table(folder / "scores.parquet") for folder in (before, after)]
    num_samples = round(0.1 * pools[0].num_rows)
    shares = []
    for seed in range(NUM_DRAWS):
        settings = SelectionSettings(budget=Budget(samples=num_samples), seed=seed)
        was, now = (
            set(draw_subset(weigh_samples(pool, settings), settings)["sample_id"].to_pylist())
            for pool in pools
        )
        shares.append(len(was - now) / num_samples)
    return fmean(shares)


def step_seconds(run_ids: Sequence[str], step: str) -> float:
    """Returns how long a step took in these runs, of which at least one must have it."""
    times = [times[step] for run in run_ids if step in (times := seconds_of(run, CURATE))]
    if not times:
        raise RuntimeError(f"{step} must have run after the change, and did not")
    return sum(times)


def seconds_of(run_id: str, steps: Sequence[str]) -> dict[str, float]:
    """Returns how long these steps of a run took."""
    with dg.DagsterInstance.get() as instance:
        stats = instance.get_run_step_stats(run_id, list(steps))
    return {s.step_key: s.end_time - s.start_time for s in stats if s.end_time and s.start_time}


if __name__ == "__main__":
    main()
