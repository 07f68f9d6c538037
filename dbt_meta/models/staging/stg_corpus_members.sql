select
    corpus_id,
    sample_id
from {{ source('warehouse', 'corpus_members') }}
