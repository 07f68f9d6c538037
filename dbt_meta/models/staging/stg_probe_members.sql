select
    probe_set_id,
    sample_id,
    kind
from {{ source('warehouse', 'probe_members') }}
