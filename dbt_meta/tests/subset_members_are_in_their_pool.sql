{{ config(meta={'dagster': {'ref': {'name': 'stg_subset_members'}}}) }}
-- A member was in the pool that was drawn from; pools made before they were kept have no rows.
select
    members.subset_id,
    members.sample_id
from {{ ref('stg_subset_members') }} as members
inner join {{ ref('subset_lineage') }} as lineage
    on members.subset_id = lineage.subset_id
left join {{ ref('stg_pool_members') }} as pool
    on lineage.pool_id = pool.pool_id and members.sample_id = pool.sample_id
where lineage.num_pool is not null and pool.sample_id is null
