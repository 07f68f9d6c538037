select
    evaluation_id,
    checkpoint_id,
    model_digest,
    task,
    doc_id,
    repeat,
    correct,
    truncated
from {{ source('warehouse', 'evaluation_outcomes') }}
