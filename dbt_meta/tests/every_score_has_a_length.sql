{{ config(meta={'dagster': {'ref': {'name': 'score_length_bias'}}}) }}
-- What the correlation is taken over are all the scores there are, none without a length.
with scores as (
    select
        scorer_id,
        count(*) as num_scores
    from {{ ref('stg_sample_scores') }}
    group by scorer_id
)

select
    bias.scorer_id,
    bias.num_samples,
    scores.num_scores
from {{ ref('score_length_bias') }} as bias
left join scores on bias.scorer_id = scores.scorer_id
where bias.num_samples is distinct from scores.num_scores
