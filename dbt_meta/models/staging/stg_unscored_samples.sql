select
    scorer_id,
    sample_id,
    reason,
    detail
from {{ source('warehouse', 'unscored_samples') }}
