"""Chains of artifacts in a real home, as the graph makes them, but for the work: files and rows."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pyarrow as pa

from circuitseer_assets.assets.checkpoint import CHECKPOINT_FILE, WEIGHTS_FILE
from circuitseer_assets.method.audit import Lineage
from circuitseer_assets.records import Artifact
from circuitseer_assets.settings import PROJECT_ROOT, load_settings
from resources.artifacts import data_version_of, digest_file
from resources.home import Home

CHAIN = ("corpus", "probe_set", "head_ranking", "sample_scores", "subset")
NUMBERS = {"num_steps": 1, "first_loss_nats": 1.0, "final_loss_nats": 1.0}
MODEL = PROJECT_ROOT / "models/tiny"


def make_artifact(
    home: Home,
    artifact_id: str,
    parents: Sequence[str] = (),
    *,
    rows: Mapping[str, list[dict[str, Any]]] | None = None,
    settings: Mapping[str, Any] | None = None,
    files: Mapping[str, str] | None = None,
    mlflow_run_id: str | None = None,
) -> Artifact:
    """Returns an artifact of the stage its id begins with, after writing its files and rows."""
    stage = artifact_id.rpartition("-")[0]
    with home.artifacts.write(stage, artifact_id) as folder:
        for name, text in (files or {"content.txt": artifact_id}).items():
            (folder / name).write_text(text)
    artifact = Artifact(
        artifact_id=artifact_id,
        stage=stage,
        data_version=data_version_of(home.artifacts.folder(stage, artifact_id)),
        parents=tuple(parents),
        settings=settings or {},
        code_version="1",
        mlflow_run_id=mlflow_run_id,
    )
    tables = {table: pa.Table.from_pylist(of_it) for table, of_it in (rows or {}).items()}
    return home.warehouse.record(artifact, tables)


def make_chain(home: Home, name: str, samples: Sequence[str], *, scorer: str = "") -> str:
    """Returns the subset's id of a chain from a corpus of these samples, of which it has the last.

    The first sample is a probe. Scorer and tokenizer are the chain's own, or named `scorer`.
    """
    scorer_id, tokenizer_id = f"scorer-{scorer or name}", f"tokenizer-{scorer or name}"
    probe, chosen = samples[0], samples[-1]
    sources = {"source": "made", "position": 0}
    of_corpus = [{"corpus_id": f"corpus-{name}", "sample_id": one} for one in samples]
    drawn = {"score": 1.0, "weight": 1.0, "sampling_key": 0.5, "inclusion_probability": 0.5}
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {
        "corpus": {
            "corpus_members": of_corpus,
            "samples": [{**row, "prompt_id": row["sample_id"], **sources} for row in of_corpus],
        },
        "probe_set": {
            "probe_members": [
                {"probe_set_id": f"probe_set-{name}", "sample_id": probe, "kind": "ranking"}
            ]
        },
        "subset": {
            "subset_members": [{"subset_id": f"subset-{name}", "sample_id": chosen, **drawn}]
        },
    }
    settings = {"sample_scores": {"scorer_id": scorer_id, "tokenizer_id": tokenizer_id}}
    append_scores(home, scorer_id, samples)
    lengths = {"num_prompt_tokens": 3, "num_response_tokens": 4}
    measured = [{"tokenizer_id": tokenizer_id, "sample_id": one, **lengths} for one in samples]
    home.warehouse.append_lengths(pa.Table.from_pylist(measured))
    for i, stage in enumerate(CHAIN):
        parents = [f"{CHAIN[i - 1]}-{name}"] if i else []
        make_artifact(
            home, f"{stage}-{name}", parents, rows=rows.get(stage), settings=settings.get(stage)
        )
    return f"subset-{name}"


def append_scores(home: Home, scorer_id: str, samples: Sequence[str]) -> None:
    scores = [{"sample_id": one, "score": 1.0, "num_tokens": 3} for one in samples]
    home.warehouse.append_scores(scorer_id, pa.Table.from_pylist(scores))


def make_checkpoint(home: Home, name: str, subset_id: str) -> str:
    """Returns the id of a checkpoint of a subset, after logging the embedded model as its own."""
    checkpoint_id = f"checkpoint-{name}"
    with home.tracking().run(checkpoint_id, {"artifact_id": checkpoint_id}) as run:
        uri = run.log_checkpoint(MODEL, tags={"artifact_id": checkpoint_id})
    row = {"checkpoint_id": checkpoint_id, "subset_id": subset_id, "mlflow_model_uri": uri}
    weights = {path.name: digest_file(path) for path in MODEL.glob("*.safetensors")}
    make_artifact(
        home,
        checkpoint_id,
        [subset_id],
        rows={"checkpoints": [{**row, **NUMBERS, "num_train_tokens": 9, "duration_s": 0.1}]},
        files={
            CHECKPOINT_FILE: f'{{"mlflow_model_uri": "{uri}"}}',
            WEIGHTS_FILE: str(weights).replace("'", '"'),
        },
        mlflow_run_id=run.run_id,
    )
    return checkpoint_id


def show(home: Home, asset: Sequence[str], artifact_id: str, partition: str | None = None) -> None:
    """Makes an artifact what an asset, or a partition of it, last materialised."""
    home.set_environment()
    shown = dg.AssetMaterialization(
        asset_key=dg.AssetKey(asset), partition=partition, metadata={"artifact_id": artifact_id}
    )
    with dg.DagsterInstance.get() as instance:
        instance.report_runless_asset_event(shown)


def recorded(home: Home) -> set[str]:
    return {artifact.artifact_id for artifact in home.warehouse.artifacts()}


def stored(home: Home) -> set[str]:
    """The artifacts that have a folder."""
    return {path.name for path in home.artifacts.root.glob("*/*")}


def model_of(home: Home, checkpoint_id: str) -> str:
    return home.warehouse.models_of_checkpoints()[checkpoint_id]


def paper_lineage() -> Lineage:
    """Returns the lineage of a checkpoint as the preset `paper` makes it after a re-curation."""
    settings = load_settings(PROJECT_ROOT / "presets/paper.yaml")
    model = {"dtype": "bfloat16", "model_digest": "d" * 16, "tokenizer_id": "t" * 16}
    graph = {
        "checkpoint": ("training", ["subset"]),
        "subset": ("selection", ["sample_scores"]),
        "sample_scores": ("scoring", ["pool", "head_ranking"]),
        "pool": ("decontamination", ["corpus", "probe_set"]),
        "head_ranking": ("head_ranking", ["probe_set"]),
        "corpus": ("corpus", []),
        "probe_set": ("probe_set", ["older"]),
        "older": ("corpus", []),
    }
    artifacts = tuple(
        Artifact(
            artifact_id=f"{name}-{'a' * 16}",
            stage="corpus" if name == "older" else name,
            data_version="b" * 16,
            parents=tuple(f"{parent}-{'a' * 16}" for parent in parents),
            settings={slice_: settings.slice(slice_), "version": "v" * 16, **model},
            code_version="1",
            dagster_run_id="96850215-cc10-4650-bd92-5357857cd7ca",
            mlflow_run_id="f" * 32,
            created_at=datetime(2026, 1, 2, tzinfo=UTC),
        )
        for name, (slice_, parents) in graph.items()
    )
    base_model = {"base_model": f"Qwen/Qwen2.5-Math-7B@{'0' * 40}"}
    heads = [f"{layer}.{head}" for layer in (12, 20) for head in range(20)]
    facts = {
        artifacts[0].artifact_id: {**base_model, "model": f"models:/m-{'0' * 32}"},
        artifacts[4].artifact_id: {**base_model, "heads": heads},
    }
    return Lineage(artifacts, facts=facts)
