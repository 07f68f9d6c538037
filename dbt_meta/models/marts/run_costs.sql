select
    artifacts.artifact_id,
    artifacts.stage,
    artifacts.dagster_run_id,
    artifacts.mlflow_run_id,
    costs.duration_s,
    costs.duration_s / nullif(sum(costs.duration_s) over same_run, 0) as share_of_run_duration,
    costs.num_forwards,
    costs.num_tokens,
    costs.num_tokens / nullif(costs.duration_s, 0) as num_tokens_per_s,
    artifacts.created_at
from {{ ref('stg_artifacts') }} as artifacts
left join {{ ref('stg_artifact_costs') }} as costs
    on artifacts.artifact_id = costs.artifact_id
window same_run as (partition by artifacts.dagster_run_id)
