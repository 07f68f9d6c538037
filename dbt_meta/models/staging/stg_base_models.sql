select
    model_digest,
    source,
    name,
    revision
from {{ source('warehouse', 'base_models') }}
