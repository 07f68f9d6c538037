{{ config(meta={'dagster': {'ref': {'name': 'subset_overlap'}}}) }}
-- Every pair has one row, and shares no more than its smaller subset and no less than it must.
with subsets as (
    select
        corpus_id,
        count(*) as num_subsets
    from {{ ref('subset_lineage') }}
    group by corpus_id
),

pairs as (
    select
        corpus_id,
        count(*) as num_pairs
    from {{ ref('subset_overlap') }}
    group by corpus_id
)

select
    subsets.corpus_id,
    subsets.num_subsets
from subsets
left join pairs on subsets.corpus_id = pairs.corpus_id
where coalesce(pairs.num_pairs, 0) <> subsets.num_subsets * (subsets.num_subsets - 1) // 2
union all
select
    overlap.corpus_id,
    null as num_subsets
from {{ ref('subset_overlap') }} as overlap
inner join {{ ref('subset_lineage') }} as one on overlap.subset_id = one.subset_id
inner join {{ ref('subset_lineage') }} as other on overlap.other_subset_id = other.subset_id
where
    overlap.num_common > least(overlap.num_samples, overlap.other_num_samples)
    or (
        one.pool_id = other.pool_id
        and overlap.num_common < overlap.num_samples + overlap.other_num_samples - one.num_pool
    )
