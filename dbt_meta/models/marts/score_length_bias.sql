with score_sets as (
    select distinct
        settings ->> '$.scorer_id' as scorer_id,
        settings ->> '$.tokenizer_id' as tokenizer_id,
        settings ->> '$.scoring.scorer' as scorer,
        settings ->> '$.scoring.reading' as score_reading
    from {{ ref('stg_artifacts') }}
    where stage = 'sample_scores'
),

-- Equal values share the mean of their places, as in scipy.stats.spearmanr.
ranked as (
    select
        score_sets.*,
        lengths.num_prompt_tokens,
        rank() over (partition by score_sets.scorer_id order by scores.score)
        + (count(*) over (partition by score_sets.scorer_id, scores.score) - 1) / 2 as score_rank,
        rank() over (partition by score_sets.scorer_id order by lengths.num_prompt_tokens)
        + (
            count(*) over (partition by score_sets.scorer_id, lengths.num_prompt_tokens) - 1
        ) / 2 as length_rank
    from score_sets
    inner join {{ ref('stg_sample_scores') }} as scores
        on score_sets.scorer_id = scores.scorer_id
    inner join {{ ref('stg_sample_lengths') }} as lengths
        on
            score_sets.tokenizer_id = lengths.tokenizer_id
            and scores.sample_id = lengths.sample_id
),

correlated as (
    select
        scorer_id,
        tokenizer_id,
        scorer,
        score_reading,
        count(*) as num_samples,
        avg(num_prompt_tokens) as mean_num_prompt_tokens,
        case
            when min(score_rank) < max(score_rank) and min(length_rank) < max(length_rank)
                then corr(score_rank, length_rank)
        end as score_length_spearman
    from ranked
    group by scorer_id, tokenizer_id, scorer, score_reading
)

select
    *,
    abs(score_length_spearman) > 0.6 as follows_length
from correlated
