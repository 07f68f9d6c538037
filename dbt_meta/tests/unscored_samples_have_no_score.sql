{{ config(meta={'dagster': {'ref': {'name': 'stg_unscored_samples'}}}) }}
-- A scorer either scores a sample or says why not.
select
    unscored.scorer_id,
    unscored.sample_id
from {{ ref('stg_unscored_samples') }} as unscored
inner join {{ ref('stg_sample_scores') }} as scores
    on unscored.scorer_id = scores.scorer_id and unscored.sample_id = scores.sample_id
