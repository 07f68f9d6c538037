{{ config(meta={'dagster': {'ref': {'name': 'subset_length_bias'}}}) }}
-- The tenths are the whole pool, and what was drawn from them is the whole subset.
with tenths as (
    select
        subset_id,
        sum(num_pool_samples) as num_pool,
        sum(num_drawn) as num_samples
    from {{ ref('subset_length_bias') }}
    group by subset_id
)

select
    lineage.subset_id,
    tenths.num_pool,
    tenths.num_samples
from {{ ref('subset_lineage') }} as lineage
left join tenths on lineage.subset_id = tenths.subset_id
where
    lineage.num_pool is not null
    and (
        tenths.num_pool is distinct from lineage.num_pool
        or tenths.num_samples is distinct from lineage.num_samples
    )
