select
    sample_id,
    prompt_id,
    corpus_id,
    source,
    position
from {{ source('warehouse', 'samples') }}
