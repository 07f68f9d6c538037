with subsets as (
    select
        subset_id,
        pool_id,
        tokenizer_id,
        scorer_id,
        num_samples
    from {{ ref('subset_lineage') }}
),

pools as (
    select distinct
        pool_id,
        tokenizer_id
    from subsets
),

placed as (
    select
        pools.pool_id,
        pools.tokenizer_id,
        members.sample_id,
        lengths.num_prompt_tokens,
        count(*) over (partition by pools.pool_id, pools.tokenizer_id) as num_pool,
        rank() over (
            partition by pools.pool_id, pools.tokenizer_id order by lengths.num_prompt_tokens
        ) as place,
        count(*) over (
            partition by pools.pool_id, pools.tokenizer_id, lengths.num_prompt_tokens
        ) as num_as_long
    from pools
    inner join {{ ref('stg_pool_members') }} as members
        on pools.pool_id = members.pool_id
    inner join {{ ref('stg_sample_lengths') }} as lengths
        on pools.tokenizer_id = lengths.tokenizer_id and members.sample_id = lengths.sample_id
),

-- Equal lengths lie in one decile, that of the middle of their places; whole numbers throughout,
-- so that nothing is rounded across a border.
lengths as (
    select
        pool_id,
        tokenizer_id,
        sample_id,
        num_prompt_tokens,
        num_pool,
        1 + (5 * (2 * place + num_as_long - 2)) // num_pool as decile
    from placed
),

deciles as (
    select
        pool_id,
        tokenizer_id,
        decile,
        any_value(num_pool) as num_pool,
        count(*) as num_pool_samples,
        min(num_prompt_tokens) as min_num_prompt_tokens,
        max(num_prompt_tokens) as max_num_prompt_tokens
    from lengths
    group by pool_id, tokenizer_id, decile
),

score_sets as (
    select distinct
        pool_id,
        tokenizer_id,
        scorer_id
    from subsets
),

scored as (
    select
        score_sets.pool_id,
        score_sets.scorer_id,
        lengths.decile,
        count(*) as num_scored,
        avg(scores.score) as mean_score
    from score_sets
    inner join lengths
        on
            score_sets.pool_id = lengths.pool_id
            and score_sets.tokenizer_id = lengths.tokenizer_id
    inner join {{ ref('stg_sample_scores') }} as scores
        on score_sets.scorer_id = scores.scorer_id and lengths.sample_id = scores.sample_id
    group by score_sets.pool_id, score_sets.scorer_id, lengths.decile
),

drawn as (
    select
        subsets.subset_id,
        lengths.decile,
        count(*) as num_drawn
    from subsets
    inner join {{ ref('stg_subset_members') }} as members
        on subsets.subset_id = members.subset_id
    inner join lengths
        on
            subsets.pool_id = lengths.pool_id
            and subsets.tokenizer_id = lengths.tokenizer_id
            and members.sample_id = lengths.sample_id
    group by subsets.subset_id, lengths.decile
)

select
    subsets.subset_id,
    deciles.decile,
    deciles.min_num_prompt_tokens,
    deciles.max_num_prompt_tokens,
    deciles.num_pool_samples,
    coalesce(scored.num_scored, 0) as num_scored,
    scored.mean_score,
    coalesce(drawn.num_drawn, 0) as num_drawn,
    coalesce(drawn.num_drawn, 0) / deciles.num_pool_samples as share_drawn,
    coalesce(drawn.num_drawn, 0) * deciles.num_pool
    / (deciles.num_pool_samples * subsets.num_samples) as lift
from subsets
inner join deciles
    on subsets.pool_id = deciles.pool_id and subsets.tokenizer_id = deciles.tokenizer_id
left join scored
    on
        subsets.pool_id = scored.pool_id
        and subsets.scorer_id = scored.scorer_id
        and deciles.decile = scored.decile
left join drawn
    on subsets.subset_id = drawn.subset_id and deciles.decile = drawn.decile
