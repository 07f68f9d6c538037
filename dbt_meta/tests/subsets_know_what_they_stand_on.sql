{{ config(meta={'dagster': {'ref': {'name': 'subset_lineage'}}}) }}
-- Every subset there is has its row, with the artifact of every stage before it.
select subsets.artifact_id
from {{ ref('stg_artifacts') }} as subsets
left join {{ ref('subset_lineage') }} as lineage
    on subsets.artifact_id = lineage.subset_id
where
    subsets.stage = 'subset'
    and (
        lineage.corpus_id is null
        or lineage.pool_id is null
        or lineage.probe_set_id is null
        or lineage.head_ranking_id is null
        or lineage.sample_scores_id is null
    )
