{{ config(meta={'dagster': {'ref': {'name': 'evaluation_summary'}}}) }}
-- Whatever was answered is summed up, and Pass@1 lies in its own interval.
with answered as (
    select distinct
        evaluation_id,
        checkpoint_id,
        task
    from {{ ref('stg_evaluation_outcomes') }}
)

select
    answered.evaluation_id,
    answered.task
from answered
left join {{ ref('evaluation_summary') }} as summary
    on
        answered.evaluation_id = summary.evaluation_id
        and answered.checkpoint_id is not distinct from summary.checkpoint_id
        and answered.task = summary.task
where
    summary.pass_at_1 is null
    or summary.pass_at_1 < summary.ci_low - 1e-9
    or summary.pass_at_1 > summary.ci_high + 1e-9
