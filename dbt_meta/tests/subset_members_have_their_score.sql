{{ config(meta={'dagster': {'ref': {'name': 'stg_subset_members'}}}) }}
-- A member's score is the stored one of the subset's own scorer.
select
    members.subset_id,
    members.sample_id
from {{ ref('stg_subset_members') }} as members
inner join {{ ref('subset_lineage') }} as lineage
    on members.subset_id = lineage.subset_id
left join {{ ref('stg_sample_scores') }} as scores
    on lineage.scorer_id = scores.scorer_id and members.sample_id = scores.sample_id
where scores.score is distinct from members.score
