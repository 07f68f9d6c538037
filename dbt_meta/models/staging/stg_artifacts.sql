select
    artifact_id,
    stage,
    data_version,
    parents,
    settings,
    code_version,
    dagster_run_id,
    mlflow_run_id,
    created_at
from {{ source('warehouse', 'artifacts') }}
