"""The sensor that keeps the settings slices observed; the only one that is on by default.

It also ends dead runs: a run that waits in a queue for their slot cannot do it itself.
"""

import dagster as dg

from resources.dead_runs import end_dead_runs
from resources.home import Home


@dg.sensor(
    name="observe_settings",
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Observes a settings slice when the settings file, or a file it names, changed.",
)
def observe_settings(context: dg.SensorEvaluationContext, home: Home) -> dg.SensorResult:
    """Returns an observation of every slice whose version differs from the last one seen."""
    end_dead_runs(context.instance)
    observations = find_changed_slices(context.instance, home)
    names = ", ".join(o.asset_key.path[-1] for o in observations)
    reason = None if observations else "no settings slice changed"
    if names:
        context.log.info("changed settings slices: %s", names)
    return dg.SensorResult(asset_events=observations, skip_reason=reason)


def find_changed_slices(instance: dg.DagsterInstance, home: Home) -> list[dg.AssetObservation]:
    """Returns an observation of every slice whose version is not the one last observed."""
    changed = []
    for name, version in home.slice_versions().items():
        key = dg.AssetKey(["settings", name])
        record = instance.get_latest_data_version_record(key, is_source=True)
        seen = record.asset_observation if record else None
        if seen is None or seen.tags.get("dagster/data_version") != version:
            changed.append(dg.AssetObservation(key, tags={"dagster/data_version": version}))
    return changed
