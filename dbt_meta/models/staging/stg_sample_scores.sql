select
    scorer_id,
    sample_id,
    score,
    num_tokens
from {{ source('warehouse', 'sample_scores') }}
