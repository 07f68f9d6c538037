select
    pool_id,
    sample_id
from {{ source('warehouse', 'pool_members') }}
