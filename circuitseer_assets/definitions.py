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
from circuitseer_assets.assets.labels import labelled
from circuitseer_assets.assets.study import make_study
from circuitseer_assets.assets.sweep import make_sweep
from jobs.automation import (
    automated,
    make_alert_sensor,
    make_cheap_stages,
    make_expensive_stages,
    make_schedules,
    recurate_on_new_data,
)
from jobs.full_pipeline import curate, full_pipeline, train_and_evaluate
from jobs.observe_settings import observe_settings
from jobs.study import make_study_jobs
from jobs.sweep import make_sweep_jobs
from resources.home import Home

_STAGES = [corpus, probe_set, head_ranking, sample_scores, subset, checkpoint, evaluation, audit]


def make_definitions(home: Home) -> dg.Definitions:
    """Returns everything Dagster is told of, working in `home`."""
    settings = home.settings()
    stages = dg.load_assets_from_modules([*_STAGES, dbt_models])
    return dg.Definitions(
        assets=labelled(
            [
                *dg.load_assets_from_modules([slices]),
                *automated(stages, settings.automation),
                *make_sweep(settings.sweep),
                *make_study(settings.study),
            ],
            settings.automation.owners,
        ),
        asset_checks=dg.load_asset_checks_from_modules([checks]),
        jobs=[curate, train_and_evaluate, full_pipeline, *make_sweep_jobs(), *make_study_jobs()],
        schedules=make_schedules(settings.automation),
        sensors=[
            observe_settings,
            make_cheap_stages,
            make_expensive_stages,
            recurate_on_new_data,
            make_alert_sensor(settings.automation),
        ],
        resources={"home": home, "dbt": dbt_models.dbt_resource()},
        executor=dg.in_process_executor,
    )


defs = make_definitions(Home.prepared())
