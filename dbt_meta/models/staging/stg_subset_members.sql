select
    subset_id,
    sample_id,
    score,
    weight,
    sampling_key,
    inclusion_probability
from {{ source('warehouse', 'subset_members') }}
