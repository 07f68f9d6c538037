select
    corpus_id,
    source,
    position,
    reason,
    detail
from {{ source('warehouse', 'quarantined_samples') }}
