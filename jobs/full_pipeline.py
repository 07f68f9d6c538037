"""The jobs: corpus to subset, subset to evaluation, everything."""

import dagster as dg

from jobs.staleness import REPORTS_GROUP

SETTINGS = dg.AssetSelection.groups("settings", include_sources=True)
CURATE = dg.AssetSelection.assets(
    "corpus", "probe_set", "pool", "head_ranking", "sample_scores", "subset"
)
TRAIN_AND_EVALUATE = dg.AssetSelection.assets("checkpoint", "evaluation", "audit")
REPORTS = dg.AssetSelection.groups(REPORTS_GROUP)

curate = dg.define_asset_job(
    "curate",
    selection=SETTINGS | CURATE,
    description="From the corpus to the soft-sampled subset.",
)
train_and_evaluate = dg.define_asset_job(
    "train_and_evaluate",
    selection=SETTINGS | TRAIN_AND_EVALUATE | REPORTS,
    description="From the subset to the checkpoint, its Pass@1 and the audit.",
)
full_pipeline = dg.define_asset_job(
    "full_pipeline",
    selection=SETTINGS | CURATE | TRAIN_AND_EVALUATE | REPORTS,
    description="Everything, from the corpus to the audit.",
)
