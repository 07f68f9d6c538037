{{ config(meta={'dagster': {'ref': {'name': 'stg_subset_members'}}}) }}
-- A member belongs to the corpus that the subset's pool was cut from.
select
    members.subset_id,
    members.sample_id
from {{ ref('stg_subset_members') }} as members
inner join {{ ref('subset_lineage') }} as lineage
    on members.subset_id = lineage.subset_id
left join {{ ref('stg_corpus_members') }} as corpus
    on lineage.corpus_id = corpus.corpus_id and members.sample_id = corpus.sample_id
where corpus.sample_id is null
