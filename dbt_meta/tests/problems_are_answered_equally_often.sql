{{ config(meta={'dagster': {'ref': {'name': 'stg_evaluation_outcomes'}}}) }}
-- Within an evaluation's task every problem has as many answers as any other, of every model.
with answers as (
    select
        evaluation_id,
        checkpoint_id,
        task,
        doc_id,
        count(*) as num_repeats
    from {{ ref('stg_evaluation_outcomes') }}
    group by evaluation_id, checkpoint_id, task, doc_id
)

select
    evaluation_id,
    task
from answers
group by evaluation_id, task
having min(num_repeats) <> max(num_repeats)
