"""Stage head_ranking: what ablating each head costs, and which heads are the reasoning heads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq

from circuitseer_assets.assets.probe_set import PROBE_KINDS
from circuitseer_assets.assets.slices import settings_key
from circuitseer_assets.assets.stage import Made, Materialised, StageRun
from circuitseer_assets.errors import CorpusError
from circuitseer_assets.method.figures import (
    draw_head_heat_map,
    to_markdown_image,
)
from circuitseer_assets.method.tables import format_heads_table
from circuitseer_assets.records import (
    CONFIRMATION_LEVEL,
    HeadId,
    HeadRanking,
    Sample,
    TokenizedText,
    artifact_id_of,
)
from resources.home import Home
from resources.journal import FileJournal
from resources.language_model import LanguageModel, load_language_model
from resources.record_rows import base_model_rows, head_importance_rows, head_ranking_rows
from resources.sample_files import read_samples

CODE_VERSION = "1"


@dg.asset(
    group_name="head_ranking",
    kinds={"pytorch", "duckdb"},
    deps=["probe_set", settings_key("base_model"), settings_key("head_ranking")],
    code_version=CODE_VERSION,
    description="Every attention head by what its ablation costs on the probes, in nats a token.",
)
def head_ranking(context: dg.AssetExecutionContext, home: Home) -> dg.MaterializeResult[Any]:
    """Ranks the heads of the base model on the probe set."""
    run = StageRun.of(context, home, "base_model", "head_ranking")
    return run.result(make_head_ranking(run))


def make_head_ranking(run: StageRun) -> Materialised:
    """Returns the ranking of the base model's heads on the latest probe set."""
    probes = run.parent("probe_set")
    identity = {
        "head_ranking": run.settings.slice("head_ranking"),
        **run.home.model_identity(),
    }
    ranking_id = artifact_id_of("head_ranking", identity, [probes.artifact_id], CODE_VERSION)
    return run.reuse_or_make(
        "head_ranking",
        identity,
        [probes],
        lambda folder: _rank(run, run.folder(probes), ranking_id, folder),
        code_version=CODE_VERSION,
    )


def _rank(run: StageRun, probes: Path, ranking_id: str, folder: Path) -> Made:
    from circuitseer_assets.method.forwards import count_forwards
    from circuitseer_assets.method.head_ranking import rank_heads

    settings = run.settings
    base_model = load_language_model(settings.base_model, cache=run.home.models)
    texts = {kind: _tokenize_probes(base_model, probes, kind) for kind in PROBE_KINDS}
    with count_forwards(base_model.model) as counted:
        ranking = rank_heads(
            base_model.model,
            ranking=texts["ranking"],
            confirmation=texts["confirmation"],
            control=texts["control"],
            settings=settings.head_ranking,
            max_batch_tokens=settings.execution.max_batch_tokens,
            max_cached_layers=settings.execution.max_cached_layers,
            report_progress=run.progress("head_ranking, ablations"),
            # It outlives a killed run: the next one measures only what it lacks.
            journal=FileJournal(run.work_folder(ranking_id) / "journal.jsonl"),
        )
    rows = head_importance_rows(ranking_id, ranking)
    pq.write_table(rows, folder / "head_importance.parquet")
    (folder / "head_ranking.json").write_text(json.dumps(asdict(ranking), indent=1))
    return Made(
        data=["head_importance.parquet"],
        summary=_summarise(ranking),
        rows={
            "head_importance": rows,
            "head_rankings": head_ranking_rows(ranking_id, ranking),
            "base_models": base_model_rows(base_model.model_digest, settings.base_model),
        },
        model_use=counted.use,
    )


def _tokenize_probes(base_model: LanguageModel, probes: Path, kind: str) -> list[TokenizedText]:
    texts = [tokenize_sample(base_model, sample) for sample in read_samples(probes / kind)]
    too_long = [text for text in texts if len(text.input_ids) > base_model.max_length]
    if too_long:
        raise CorpusError(
            f"probes must fit the model's context of {base_model.max_length} tokens, "
            f"{len(too_long)} {kind} probes do not (the longest has "
            f"{max(len(text.input_ids) for text in too_long)}); lower probe_set.max_characters"
        )
    return texts


def tokenize_sample(base_model: LanguageModel, sample: Sample) -> TokenizedText:
    """Returns the sample's prompt and response as the model reads them."""
    return base_model.tokenize(sample.sample_id, sample.messages, sample.response)


@dataclass(frozen=True)
class RankedHeads:
    """What scoring needs to know of a ranking: the chosen heads and the model's shape."""

    reasoning_heads: tuple[HeadId, ...]
    num_layers: int
    num_heads: int


def load_heads(folder: Path) -> RankedHeads:
    """Returns the chosen heads of a stored ranking, in order, and the model's shape."""
    stored = json.loads((folder / "head_ranking.json").read_text())
    chosen = (HeadId(**row["head"]) for row in stored["importance"] if row["is_reasoning_head"])
    return RankedHeads(tuple(sorted(chosen)), stored["num_layers"], stored["num_heads"])


def _summarise(ranking: HeadRanking) -> dict[str, Any]:
    chosen = [row for row in ranking.importance if row.is_reasoning_head]
    unconfirmed = [row for row in chosen if row.p_holm is None or row.p_holm > CONFIRMATION_LEVEL]
    image = draw_head_heat_map(ranking.importance, ranking.num_layers, ranking.num_heads)
    summary: dict[str, Any] = {
        "heat_map_md": to_markdown_image(image, "head importance, layer by head"),
        "reasoning_heads_md": format_heads_table(ranking.importance),
        "reasoning_heads": [str(head) for head in ranking.reasoning_heads],
        "num_reasoning_heads": len(chosen),
        "num_unconfirmed_heads": len(unconfirmed),
        "unconfirmed_heads": [str(row.head) for row in unconfirmed],
        "num_heads": ranking.num_layers * ranking.num_heads,
        "clean_loss_nats": ranking.clean_loss_nats,
        "boundary_gap_nats": ranking.boundary_gap_nats,
        "heads_measured_on_all_probes": sum(r.measured_on_all for r in ranking.importance),
    }
    if ranking.split_half_overlap is not None:
        summary["split_half_overlap"] = ranking.split_half_overlap
    if ranking.joint is not None:
        summary["joint_ablation_delta_nats"] = ranking.joint.delta_chosen_nats
        summary["joint_ablation_random_delta_nats"] = list(ranking.joint.delta_random_nats)
        summary["joint_ablation_p_value"] = ranking.joint.p_value
    return summary
