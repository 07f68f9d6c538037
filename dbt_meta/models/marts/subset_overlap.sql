with subsets as (
    select
        subset_id,
        corpus_id,
        pool_id,
        scorer_id,
        seed,
        num_samples,
        row_number() over (order by created_at, subset_id) as number
    from {{ ref('subset_lineage') }}
),

-- By number and not by id, so that the join, by far the largest here, stays small.
members as (
    select
        subsets.number,
        subsets.corpus_id,
        drawn.sample_id
    from subsets
    inner join {{ ref('stg_subset_members') }} as drawn
        on subsets.subset_id = drawn.subset_id
),

common as (
    select
        members.number,
        others.number as other_number,
        count(*) as num_common
    from members
    inner join members as others
        on
            members.sample_id = others.sample_id
            and members.corpus_id = others.corpus_id
            and members.number < others.number
    group by members.number, others.number
),

pairs as (
    select
        subsets.number,
        others.number as other_number,
        subsets.subset_id,
        others.subset_id as other_subset_id,
        subsets.corpus_id,
        subsets.pool_id,
        others.pool_id as other_pool_id,
        subsets.num_samples,
        others.num_samples as other_num_samples,
        subsets.scorer_id = others.scorer_id as is_same_scorer,
        subsets.seed = others.seed as is_same_seed
    from subsets
    inner join subsets as others
        on subsets.corpus_id = others.corpus_id and subsets.number < others.number
),

pools as (
    select
        pool_id,
        count(*) as num_pool
    from {{ ref('stg_pool_members') }}
    group by pool_id
),

pool_pairs as (
    select distinct
        pool_id,
        other_pool_id
    from pairs
    where pool_id <> other_pool_id
),

in_both_pools as (
    select
        pool_pairs.pool_id,
        pool_pairs.other_pool_id,
        count(*) as num_in_both
    from pool_pairs
    inner join {{ ref('stg_pool_members') }} as members
        on pool_pairs.pool_id = members.pool_id
    inner join {{ ref('stg_pool_members') }} as others
        on
            pool_pairs.other_pool_id = others.pool_id
            and members.sample_id = others.sample_id
    group by pool_pairs.pool_id, pool_pairs.other_pool_id
),

-- A sample of both pools is in two independent draws with the product of their shares.
expected as (
    select
        pairs.*,
        coalesce(common.num_common, 0) as num_common,
        case
            when pairs.pool_id = pairs.other_pool_id then pools.num_pool
            when pools.num_pool is not null and other_pools.num_pool is not null
                then coalesce(in_both_pools.num_in_both, 0)
        end
        * (pairs.num_samples / pools.num_pool)
        * (pairs.other_num_samples / other_pools.num_pool) as num_common_at_random
    from pairs
    left join common
        on pairs.number = common.number and pairs.other_number = common.other_number
    left join pools on pairs.pool_id = pools.pool_id
    left join pools as other_pools on pairs.other_pool_id = other_pools.pool_id
    left join in_both_pools
        on
            pairs.pool_id = in_both_pools.pool_id
            and pairs.other_pool_id = in_both_pools.other_pool_id
)

select
    subset_id,
    other_subset_id,
    corpus_id,
    is_same_scorer,
    is_same_seed,
    num_samples,
    other_num_samples,
    num_common,
    num_common / (num_samples + other_num_samples - num_common) as jaccard,
    num_common_at_random,
    num_common / nullif(num_common_at_random, 0) as lift
from expected
