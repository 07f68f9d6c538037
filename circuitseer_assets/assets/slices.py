"""The settings as observed source assets: what changes here makes stale what depends on it."""

from collections.abc import Iterator

import dagster as dg

from circuitseer_assets.settings import SLICES
from resources.home import Home

_WHAT = {
    "base_model": "the reference model, its weights' and tokenizer's files",
    "corpus": "where the rows come from, and the files themselves",
    "decontamination": "the benchmarks that pool and probes are cleaned against",
    "probe_set": "how many probes of each kind, and which rows may become one",
    "head_ranking": "how heads are ablated, ranked and confirmed",
    "scoring": "what the score is: a scorer and, for attention, its reading",
    "selection": "budget, weights and the draw",
    "training": "the fine-tuning recipe",
    "evaluation": "which problems are answered, and how",
}


@dg.multi_observable_source_asset(
    name="observe_settings",
    specs=[
        dg.AssetSpec(
            dg.AssetKey(["settings", name]),
            group_name="settings",
            kinds={"yaml"},
            description=f"Settings slice `{name}`: {_WHAT[name]}.",
        )
        for name in SLICES
    ],
)
def settings_slices(home: Home) -> Iterator[dg.ObserveResult]:
    """Observes the version of every settings slice."""
    settings = home.settings()
    for name, version in home.slice_versions().items():
        yield dg.ObserveResult(
            asset_key=dg.AssetKey(["settings", name]),
            data_version=dg.DataVersion(version),
            metadata={"values": dg.MetadataValue.json(settings.slice(name))},
        )


def settings_key(name: str) -> dg.AssetKey:
    """Returns the asset key of a settings slice."""
    return dg.AssetKey(["settings", name])
