select
    artifact_id,
    duration_s,
    num_forwards,
    num_tokens
from {{ source('warehouse', 'artifact_costs') }}
