"""The one place where assets, checks, jobs and resources meet."""

import dagster as dg

from circuitseer_assets import checks
from circuitseer_assets.assets import (
    audit,
    checkpoint,
    corpus,
    dbt_models,
    evaluation,
    head_ranking,
    probe_set,
    sample_scores,
    slices,
    subset,
)
from jobs.full_pipeline import curate, full_pipeline, train_and_evaluate
from jobs.observe_settings import observe_settings
from resources.home import Home

_STAGES = [corpus, probe_set, head_ranking, sample_scores, subset, checkpoint, evaluation, audit]


def make_definitions(home: Home) -> dg.Definitions:
    """Returns everything Dagster is told of, working in `home`."""
    return dg.Definitions(
        assets=dg.load_assets_from_modules([slices, *_STAGES, dbt_models]),
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=[curate, train_and_evaluate, full_pipeline],
        sensors=[observe_settings],
        resources={"home": home, "dbt": dbt_models.dbt_resource()},
        executor=dg.in_process_executor,
    )


defs = make_definitions(Home.prepared())
