with recursive walked as (
    select
        artifact_id,
        artifact_id as ancestor_id,
        0 as distance
    from {{ ref('stg_artifacts') }}
    union
    select
        walked.artifact_id,
        unnest(artifacts.parents) as ancestor_id,
        walked.distance + 1 as distance
    from walked
    inner join {{ ref('stg_artifacts') }} as artifacts
        on walked.ancestor_id = artifacts.artifact_id
),

nearest as (
    select
        artifact_id,
        ancestor_id,
        min(distance) as distance
    from walked
    group by artifact_id, ancestor_id
)

select
    nearest.artifact_id,
    artifacts.stage,
    nearest.ancestor_id,
    ancestors.stage as ancestor_stage,
    nearest.distance,
    ancestors.settings as ancestor_settings,
    ancestors.data_version as ancestor_data_version,
    ancestors.code_version as ancestor_code_version,
    ancestors.dagster_run_id as ancestor_dagster_run_id,
    ancestors.mlflow_run_id as ancestor_mlflow_run_id,
    ancestors.created_at as ancestor_created_at
from nearest
inner join {{ ref('stg_artifacts') }} as artifacts
    on nearest.artifact_id = artifacts.artifact_id
inner join {{ ref('stg_artifacts') }} as ancestors
    on nearest.ancestor_id = ancestors.artifact_id
