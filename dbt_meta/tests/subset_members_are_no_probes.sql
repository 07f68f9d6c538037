{{ config(meta={'dagster': {'ref': {'name': 'stg_subset_members'}}}) }}
-- A sample that helped choose the heads is never drawn by them.
select
    members.subset_id,
    members.sample_id
from {{ ref('stg_subset_members') }} as members
inner join {{ ref('subset_lineage') }} as lineage
    on members.subset_id = lineage.subset_id
inner join {{ ref('stg_probe_members') }} as probes
    on lineage.probe_set_id = probes.probe_set_id and members.sample_id = probes.sample_id
