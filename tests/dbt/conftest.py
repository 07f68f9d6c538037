"""A warehouse with one row of every kind, small enough to compute every mart by hand."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from circuitseer_assets.records import Artifact, ModelUse
from circuitseer_assets.settings import PROJECT_ROOT
from resources.record_rows import artifact_cost_rows
from resources.warehouse import Warehouse

START = datetime(2026, 1, 1, tzinfo=UTC)
MODEL = {"model_digest": "model-digest", "tokenizer_id": "tokenizer-1"}
SCORES = {"s1": 1.0, "s2": 2.0, "s3": 3.0, "s4": 5.0}
# (layer, head): delta, reasoning?, Holm's p
FIRST_RANKING = {(0, 0): (0.3, True, 0.01), (0, 1): (0.1, False, None)} | {
    (1, 0): (-0.2, False, None),
    (1, 1): (0.2, True, 0.2),
}
SECOND_RANKING = {(0, 0): (0.4, True, 0.03), (0, 1): (0.1, False, None)} | {
    (1, 0): (0.0, False, None),
    (1, 1): (0.05, False, None),
}
# task: by problem, the two answers of the base model and of the checkpoint
ANSWERS = {
    "gsm8k": {"p1": ("++", "++"), "p2": ("+-", "++"), "p3": ("--", "+-"), "p4": ("--", "--")},
    "svamp": {"q1": ("--", "++"), "q2": ("--", "++")},
}


@dataclass(frozen=True)
class Build:
    """What one `dbt build` left behind."""

    warehouse: Warehouse
    target: Path
    statuses: dict[str, str]

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """Returns the rows of a query on the warehouse that was built."""
        return self.warehouse.query(sql).to_pylist()


def run_dbt(warehouse: Warehouse, folder: Path, *command: str) -> None:
    """Runs a command of dbt on the warehouse; what it writes goes to `folder`."""
    project = str(PROJECT_ROOT / "dbt_meta")
    whole = [str(Path(sys.executable).with_name("dbt")), "--quiet", *command]
    whole += ["--project-dir", project, "--profiles-dir", project]
    whole += ["--target-path", str(folder / "target"), "--log-path", str(folder / "logs")]
    environment = {
        **os.environ,
        "CIRCUITSEER_WAREHOUSE": str(warehouse.path),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "false",
    }
    done = subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def build_with_dbt(warehouse: Warehouse, folder: Path) -> Build:
    """Returns what `dbt build` on the warehouse made of it."""
    run_dbt(warehouse, folder, "build")
    results = json.loads((folder / "target" / "run_results.json").read_text())["results"]
    statuses = {
        result["unique_id"].split(".")[2]: result["status"]
        for result in results
        if not result["unique_id"].startswith("exposure.")  # nothing is built of these
    }
    return Build(warehouse, folder / "target", statuses)


@pytest.fixture(scope="session")
def full_build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """The build on the fixture."""
    folder = tmp_path_factory.mktemp("dbt")
    warehouse = Warehouse(folder / "warehouse.duckdb")
    for artifact, rows in fixture_artifacts():
        warehouse.record(artifact, rows)
    scores = {"sample_id": list(SCORES), "score": list(SCORES.values()), "num_tokens": [9, 9, 9, 9]}
    unscored = [{"sample_id": "s6", "reason": "too_short", "detail": "5 tokens"}]
    warehouse.append_scores("scorer-1", pa.table(scores), pa.Table.from_pylist(unscored))
    flat = pa.table({"sample_id": ["s1", "s2"], "score": [0.0, 0.0], "num_tokens": [4, 8]})
    warehouse.append_scores("scorer-2", flat)
    return build_with_dbt(warehouse, folder)


def fixture_artifacts() -> Iterator[tuple[Artifact, dict[str, pa.Table]]]:
    """Returns every artifact with its rows, one an hour, each after its parents."""
    made = [
        ("corpus-0", [], {"corpus": {"source": "hub", "repo_id": "old"}}, corpus_rows(0, 5)),
        ("corpus-1", [], {"corpus": CORPUS}, corpus_rows(1, 6)),
        ("probe_set-1", ["corpus-0"], {"probe_set": {"seed": 0}}, probe_rows()),
        ("pool-1", ["corpus-1", "probe_set-1"], {"decontamination": {}}, pool_rows()),
        ("head_ranking-1", ["probe_set-1"], RANKING, ranking_rows("1", FIRST_RANKING)),
        ("head_ranking-2", ["probe_set-1"], MODEL, ranking_rows("2", SECOND_RANKING)),
        ("sample_scores-1", ["pool-1", "head_ranking-1"], SCORING, length_rows()),
        ("subset-1", ["sample_scores-1"], selection(fraction=0.5), subset_rows("1", "s2", "s4")),
        ("subset-2", ["sample_scores-1"], selection(samples=1), subset_rows("2", "s4")),
        ("checkpoint-1", ["subset-1"], {"training": {}}, checkpoint_rows()),
        ("evaluation-0", [], {"evaluation": {}}, outcome_rows(0)),
        ("evaluation-1", ["checkpoint-1", "evaluation-0"], {"evaluation": {}}, outcome_rows(1)),
        ("study_cell-1", ["checkpoint-1", "evaluation-1"], {}, cell_rows("1", 0, 0.5)),
        ("study_cell-2", ["checkpoint-1", "evaluation-1"], {}, cell_rows("2", 1, 0.7)),
        ("study_results-1", ["study_cell-1", "study_cell-2"], LEFT_OUT, comparison_rows()),
    ]
    for hour, (artifact_id, parents, settings, rows) in enumerate(made):
        yield (
            Artifact(
                artifact_id=artifact_id,
                stage=artifact_id.split("-")[0],
                data_version=f"version of {artifact_id}",
                parents=tuple(parents),
                settings=settings,
                code_version="1",
                dagster_run_id=f"run of {artifact_id}",
                mlflow_run_id=f"training of {artifact_id}" if "checkpoint" in artifact_id else None,
                created_at=START + timedelta(hours=hour),
            ),
            {name: pa.Table.from_pylist(content) for name, content in rows.items()}
            # The first one was made before costs were kept.
            | ({"artifact_costs": cost_row(artifact_id, hour)} if hour else {}),
        )


CORPUS = {"source": "files", "paths": ["a.jsonl", "b.jsonl"]}
RANKING = {"head_ranking": {}, **MODEL}
SCORING = {
    "scoring": {"scorer": "attention", "reading": "attention_variance", "heads": "reasoning"},
    "scorer_id": "scorer-1",
    **MODEL,
}

LEFT_OUT = {"left_out": {"quality": 'it can\'t be asked: "yes" is no token'}}

Rows = dict[str, list[dict[str, Any]]]


def selection(**budget: float) -> dict[str, Any]:
    whole = {"fraction": None, "samples": None, "tokens": None, **budget}
    method = {"weights": "power", "power": 1.0, "temperature": 1.0, "debias": "none"}
    return {"selection": {"budget": whole, **method, "sampling": "exponential", "seed": 7}}


def corpus_rows(number: int, size: int) -> Rows:
    corpus_id, ids = f"corpus-{number}", [f"s{i}" for i in range(1, size + 1)]
    return {
        "samples": [
            {"sample_id": i, "prompt_id": i, "corpus_id": corpus_id, "source": "a", "position": 0}
            for i in ids
        ],
        "corpus_members": [{"corpus_id": corpus_id, "sample_id": i} for i in ids],
        "quarantined_samples": [
            {"corpus_id": corpus_id, "source": "a", "position": 9, "reason": "empty", "detail": ""}
        ],
    }


def pool_rows() -> Rows:
    return {"pool_members": [{"pool_id": "pool-1", "sample_id": i} for i in [*SCORES, "s6"]]}


def cost_row(artifact_id: str, hour: int) -> pa.Table:
    """Returns what an artifact took: as many seconds as hours went by, and twice the forwards."""
    return artifact_cost_rows(artifact_id, float(hour), ModelUse(2.0 * hour, 100 * hour))


def probe_rows() -> Rows:
    kinds = {"s5": "ranking", "s0": "confirmation", "prose-1": "control"}
    return {
        "probe_members": [
            {"probe_set_id": "probe_set-1", "sample_id": sample_id, "kind": kind}
            for sample_id, kind in kinds.items()
        ]
    }


def ranking_rows(
    number: str, heads: dict[tuple[int, int], tuple[float, bool, float | None]]
) -> Rows:
    ranking_id = f"head_ranking-{number}"
    importance = [
        {
            "head_ranking_id": ranking_id,
            "layer": layer,
            "head": head,
            "delta_loss_nats": delta,
            "stderr": 0.01,
            "ci_low": delta - 0.02,
            "ci_high": delta + 0.02,
            "num_probes": 8,
            "measured_on_all": True,
            "confirmed_delta_nats": delta if chosen else None,
            "p_holm": p_holm,
            "delta_control_nats": None,
            "is_reasoning_head": chosen,
        }
        for (layer, head), (delta, chosen, p_holm) in heads.items()
    ]
    model = {"model_digest": "model-digest", "source": "hub", "name": "org/model"}
    ranking = {
        "head_ranking_id": ranking_id,
        "num_layers": 2,
        "num_heads": 2,
        "clean_loss_nats": 1.0,
        "clean_confirmation_loss_nats": 1.1,
        "boundary_gap_nats": 0.1,
        "joint_delta_chosen_nats": 0.6,
        "joint_delta_random_nats": [0.1, 0.2],
        "joint_p_value": 1 / 3,
    }
    return {
        "head_importance": importance,
        "head_rankings": [ranking],
        "base_models": [{**model, "revision": "abc"}],
    }


def length_rows() -> Rows:
    lengths = [
        {
            "tokenizer_id": "tokenizer-1",
            "sample_id": sample_id,
            "num_prompt_tokens": 9,
            "num_response_tokens": 20,
        }
        for sample_id in [*SCORES, "s6"]
    ]
    return {"sample_lengths": lengths}


def subset_rows(number: str, *sample_ids: str) -> Rows:
    members = [
        {
            "subset_id": f"subset-{number}",
            "sample_id": sample_id,
            "score": SCORES[sample_id],
            "weight": SCORES[sample_id],
            "sampling_key": 0.1,
            "inclusion_probability": 0.5,
        }
        for sample_id in sample_ids
    ]
    return {"subset_members": members}


def checkpoint_rows() -> Rows:
    checkpoint = {
        "checkpoint_id": "checkpoint-1",
        "subset_id": "subset-1",
        "mlflow_model_uri": "models:/m-1",
        "num_steps": 3,
        "first_loss_nats": 1.0,
        "final_loss_nats": 0.5,
        "num_train_tokens": 58,
        "duration_s": 1.5,
    }
    return {"checkpoints": [checkpoint]}


def outcome_rows(number: int) -> Rows:
    """Returns the answers of the base model (0) or of the checkpoint (1)."""
    outcomes = [
        {
            "evaluation_id": f"evaluation-{number}",
            "checkpoint_id": (None, "checkpoint-1")[number],
            "model_digest": ("model-digest", "trained")[number],
            "task": task,
            "doc_id": doc_id,
            "repeat": repeat,
            "correct": answer == "+",
            "truncated": doc_id == "p4" and repeat == 1,
        }
        for task, problems in ANSWERS.items()
        for doc_id, answers in problems.items()
        for repeat, answer in enumerate(answers[number])
    ]
    return {"evaluation_outcomes": outcomes}


def cell_rows(number: str, seed: int, pass_at_1: float) -> Rows:
    """Returns a cell of the method `circuitseer`."""
    cell = {
        "study_cell_id": f"study_cell-{number}",
        "method": "circuitseer",
        "seed": seed,
        "checkpoint_id": "checkpoint-1",
        "evaluation_id": "evaluation-1",
        "subset_id": "subset-1",
        "pass_at_1": pass_at_1,
        "held_out_loss_nats": None,
        "num_samples": 2,
        "num_pool": 4,
        "effective_pool_size": 3.0,
        "score_tilt_sd": 0.5,
        "random_tilt_sd": 0.1,
        "num_selection_forwards": 4,
        "selection_s": 2.0,
        "num_train_tokens": 58,
        "num_steps": 3,
        "training_s": 1.0 + seed,
    }
    return {"study_cells": [cell]}


def comparison_rows() -> Rows:
    """Returns a primary comparison and an exploratory one."""
    figures = {
        "difference": 0.1,
        "stderr": 0.05,
        "degrees_of_freedom": 10.0,
        "ci_low": -0.01,
        "ci_high": 0.21,
        "bootstrap_low": -0.02,
        "bootstrap_high": 0.22,
        "p_value": 0.07,
        "smallest_effect": 0.15,
        "verdict": "undecided",
    }
    compared = {"study_id": "study_results-1", "method": "circuitseer", "against": "random"}
    return {
        "study_comparisons": [
            {**compared, **figures, "endpoint": "pass_at_1", "p_holm": 0.14},
            {**compared, **figures, "endpoint": "held_out_log_likelihood_nats", "p_holm": None},
        ]
    }
