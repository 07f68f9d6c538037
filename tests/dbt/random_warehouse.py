"""A warehouse of random rows, large enough for ties, gaps and pairs that nobody thought of."""

import itertools
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from circuitseer_assets.records import Artifact, ModelUse
from resources.record_rows import artifact_cost_rows
from resources.warehouse import Warehouse
from tests.dbt.conftest import START

# pool: its corpus, and how many samples it has; None for one made before members were kept.
POOLS = {"pool-a": ("corpus-1", 240), "pool-b": ("corpus-1", 150)} | {
    "pool-c": ("corpus-2", 260),
    "pool-old": ("corpus-1", None),
}
# scorer: its model, its tokenizer, and how many values a score can have.
SCORERS = {"fine": ("m1", "t1", 10_000), "tied": ("m1", "t1", 6)} | {
    "flat": ("m2", "t2", 1),
    "by-one-length": ("m3", "t3", 10_000),
}
TOKENIZERS = {"t1": 12, "t2": 200, "t3": 1}  # how many lengths there are
SHAPES = {"m1": (2, 3), "m2": (2, 3), "m3": (3, 2)}  # layers and heads
RANKINGS = {"r1": "m1", "r2": "m1", "r3": "m1", "r4": "m2", "r5": "m3"}


class RandomWarehouse:
    """Writes it; the same seed gives the same."""

    def __init__(self, path: Path, seed: int) -> None:
        self.warehouse = Warehouse(path)
        self.random = np.random.default_rng(seed)
        self.hours = itertools.count()
        self._write_pools()
        self._write_rankings()
        self._write_scores()
        self._write_subsets()

    def record(
        self, artifact_id: str, parents: list[str], settings: Any, **rows: list[dict[str, Any]]
    ) -> None:
        hour = next(self.hours)
        artifact = Artifact(
            artifact_id=artifact_id,
            stage=artifact_id.partition("-")[0] if "-" in artifact_id else "head_ranking",
            data_version="1",
            parents=tuple(parents),
            settings=settings,
            code_version="1",
            dagster_run_id=f"run-{hour // 4}",
            created_at=START + timedelta(hours=hour),
        )
        tables = {name: pa.Table.from_pylist(content) for name, content in rows.items() if content}
        if self.random.random() < 0.8:
            uses_model = self.random.random() < 0.5
            use = ModelUse(self.random.random() * 9, hour) if uses_model else None
            seconds = float(self.random.integers(0, 5))
            tables["artifact_costs"] = artifact_cost_rows(artifact_id, seconds, use)
        self.warehouse.record(artifact, tables)

    def _write_pools(self) -> None:
        members = {"corpus-1": range(300), "corpus-2": range(50, 350)}
        for corpus, numbers in members.items():
            samples = [
                {"sample_id": f"s{i}", "prompt_id": f"s{i}", "corpus_id": corpus}
                | {"source": "a", "position": i}
                for i in numbers
            ]
            owned = [{"corpus_id": corpus, "sample_id": f"s{i}"} for i in numbers]
            self.record(corpus, [], {}, samples=samples, corpus_members=owned)
            self.record(f"probe_set-{corpus[-1]}", [corpus], {})
        for pool, (corpus, size) in POOLS.items():
            drawn = self.random.choice(list(members[corpus]), size or 0, replace=False)
            rows = [{"pool_id": pool, "sample_id": f"s{i}"} for i in drawn]
            self.record(pool, [corpus, f"probe_set-{corpus[-1]}"], {}, pool_members=rows)
        for tokenizer, num_lengths in TOKENIZERS.items():
            prompts = self.random.integers(5, 5 + num_lengths, 350)
            lengths = {
                "tokenizer_id": [tokenizer] * 350,
                "sample_id": [f"s{i}" for i in range(350)],
                "num_prompt_tokens": prompts,
                "num_response_tokens": self.random.integers(1, 90, 350),
            }
            self.warehouse.append_lengths(pa.table(lengths))

    def _write_rankings(self) -> None:
        for ranking, model in RANKINGS.items():
            num_layers, num_heads = SHAPES[model]
            heads = list(itertools.product(range(num_layers), range(num_heads)))
            deltas = self.random.integers(-3, 9, len(heads)) / 10
            num_chosen = int(self.random.integers(1, 4))
            chosen = set(np.argsort(-deltas, kind="stable")[:num_chosen].tolist())
            importance = [
                {
                    "head_ranking_id": ranking,
                    "layer": layer,
                    "head": head,
                    "delta_loss_nats": deltas[i],
                    **dict.fromkeys(("stderr", "ci_low", "ci_high"), 0.0),
                    "num_probes": 4,
                    "measured_on_all": True,
                    "p_holm": float(self.random.random() / 8) if i in chosen else None,
                    "is_reasoning_head": i in chosen,
                }
                for i, (layer, head) in enumerate(heads)
            ]
            shape = {"head_ranking_id": ranking, "num_layers": num_layers, "num_heads": num_heads}
            losses = dict.fromkeys(("clean_loss_nats", "clean_confirmation_loss_nats"), 1.0)
            self.record(
                ranking,
                ["probe_set-1"],
                {"model_digest": model},
                head_importance=importance,
                head_rankings=[{**shape, **losses, "boundary_gap_nats": 0.1}],
            )

    def _write_scores(self) -> None:
        for scorer, (model, tokenizer, num_values) in SCORERS.items():
            ranking = next(ranking for ranking, of in RANKINGS.items() if of == model)
            settings = {"scorer_id": scorer, "tokenizer_id": tokenizer, "model_digest": model}
            settings["scoring"] = {"scorer": "attention", "reading": scorer}
            for pool in POOLS:
                self.record(f"sample_scores-{scorer}:{pool}", [pool, ranking], settings)
            # A few have no score, whatever pool they are in.
            scored = self.random.choice(350, 330, replace=False)
            values = self.random.integers(1, 1 + num_values, 330) / 8
            scores = {"sample_id": [f"s{i}" for i in scored], "score": values}
            table = pa.table({**scores, "num_tokens": np.full(330, 7)})
            self.warehouse.append_scores(scorer, table)

    def _write_subsets(self) -> None:
        for number, (scorer, pool) in enumerate(itertools.product(SCORERS, POOLS)):
            drawable = self.warehouse.query(
                "select sample_id, score from sample_scores where scorer_id = $scorer and sample_id"
                " in (select sample_id from pool_members where pool_id = $pool union all "
                "select sample_id from corpus_members where corpus_id = 'corpus-1' and $pool = "
                "'pool-old') order by sample_id",
                {"scorer": scorer, "pool": pool},
            ).to_pylist()
            size = int(self.random.integers(1, 90))
            drawn = self.random.choice(len(drawable), size, replace=False)
            members = [
                {"subset_id": f"subset-{number}", **drawable[i]}
                | {"weight": 1.0, "sampling_key": 0.5, "inclusion_probability": 0.5}
                for i in drawn
            ]
            selection = {"budget": {"samples": size}, "seed": number % 3}
            self.record(
                f"subset-{number}",
                [f"sample_scores-{scorer}:{pool}"],
                {"selection": selection},
                subset_members=members,
            )
