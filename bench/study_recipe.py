"""Measures which learning rate lets the study see what it should: the oracle's lead over random.

    python -m bench.study_recipe

The preset `tiny_study` on a pool and on problems of its own, two seeds: no other method is run, so
that the recipe favours none of those that the study compares.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import yaml

from bench.measure import log, print_result, start_logging
from circuitseer_assets.settings import PROJECT_ROOT

LEARNING_RATES = (1e-4, 3e-4, 1e-3)
METHODS = ["oracle", "random"]
NUM_SEEDS = 2
NUM_PROBLEMS = 500
POOL_SEED, BENCHMARK_SEED = 8, 1  # those of the preset are 7 and 0


def main() -> None:
    """Runs a small study a learning rate and prints Pass@1 of both methods."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    start_logging()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="circuitseer-recipe-") as folder:
        rows = [run_study(Path(folder), rate) for rate in LEARNING_RATES]
    print_result(
        {"num_seeds": NUM_SEEDS, "num_problems": NUM_PROBLEMS, "rows": rows}, started=started
    )


def run_study(home: Path, learning_rate: float) -> dict[str, Any]:
    """Returns both methods' Pass@1 with this learning rate.

    All rates share one home, so that pool, ranking and scores are made once.
    """
    settings = yaml.safe_load((PROJECT_ROOT / "presets" / "tiny_study.yaml").read_text())
    settings["corpus"]["seed"] = POOL_SEED
    settings["decontamination"]["benchmarks"][0] |= {
        "num_problems": NUM_PROBLEMS,
        "seed": BENCHMARK_SEED,
    }
    settings["training"]["learning_rate"] = learning_rate
    settings["study"] |= {"methods": METHODS, "num_seeds": NUM_SEEDS}
    path = home / "study.yaml"
    path.write_text(yaml.safe_dump(settings))
    log.info("learning rate %g", learning_rate)
    subprocess.run(
        [Path(sys.executable).with_name("circuitseer"), "study", "--json"],
        env={**os.environ, "CIRCUITSEER_HOME": str(home), "CIRCUITSEER_SETTINGS": str(path)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return {"learning_rate": learning_rate, **read_pass_at_1(home / "warehouse.duckdb")}


def read_pass_at_1(warehouse: Path) -> dict[str, float]:
    """Returns each method's Pass@1 in the newest study, and the oracle's lead, as shares."""
    with duckdb.connect(warehouse, read_only=True) as connection:
        pass_at_1 = dict(
            connection.sql(
                "select method, pass_at_1 from study_results "
                "qualify created_at = max(created_at) over ()"
            ).fetchall()
        )
    return {**pass_at_1, "oracle_minus_random": pass_at_1["oracle"] - pass_at_1["random"]}


if __name__ == "__main__":
    main()
