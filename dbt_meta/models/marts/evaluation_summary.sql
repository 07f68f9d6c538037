with problems as (
    select
        evaluation_id,
        checkpoint_id,
        model_digest,
        task,
        doc_id,
        count(*) as num_repeats,
        avg(cast(correct as double)) as share_correct,
        avg(cast(truncated as double)) as share_truncated
    from {{ ref('stg_evaluation_outcomes') }}
    group by evaluation_id, checkpoint_id, model_digest, task, doc_id
),

tasks as (
    select
        evaluation_id,
        checkpoint_id,
        model_digest,
        task,
        count(*) as num_problems,
        max(num_repeats) as num_repeats,
        avg(share_correct) as pass_at_1,
        avg(share_truncated) as truncation_rate,
        var_samp(share_correct) / count(*) as variance
    from problems
    group by evaluation_id, checkpoint_id, model_digest, task
),

-- Repeats of one problem are not independent: they count as many answers as their variance says.
-- This is the interval of `circuitseer_assets.method.evaluation.summarise`.
sized as (
    select
        *,
        case
            when num_repeats > 1 and variance > 0
                then least(
                    greatest(pass_at_1 * (1 - pass_at_1) / variance, num_problems),
                    num_problems * num_repeats
                )
            else num_problems
        end as num_effective_answers,
        3.841458820694124 as z_squared
    from tasks
),

centred as (
    select
        *,
        (pass_at_1 + z_squared / (2 * num_effective_answers))
        / (1 + z_squared / num_effective_answers) as centre,
        sqrt(
            z_squared * pass_at_1 * (1 - pass_at_1) / num_effective_answers
            + pow(z_squared / (2 * num_effective_answers), 2)
        ) / (1 + z_squared / num_effective_answers) as half_width
    from sized
),

compared as (
    select
        artifact_id as evaluation_id,
        arg_min(ancestor_id, distance) as base_evaluation_id
    from {{ ref('artifact_lineage') }}
    where stage = 'evaluation' and ancestor_stage = 'evaluation' and distance > 0
    group by artifact_id
)

select
    centred.evaluation_id,
    centred.checkpoint_id,
    centred.task,
    case when centred.checkpoint_id is null then 'base_model' else 'checkpoint' end as answered_by,
    centred.model_digest,
    checkpoints.subset_id,
    compared.base_evaluation_id,
    base_models.pass_at_1 as base_pass_at_1,
    centred.num_problems,
    centred.num_repeats,
    centred.pass_at_1,
    greatest(centred.centre - centred.half_width, 0) as ci_low,
    least(centred.centre + centred.half_width, 1) as ci_high,
    centred.truncation_rate,
    artifacts.dagster_run_id,
    artifacts.created_at
from centred
inner join {{ ref('stg_artifacts') }} as artifacts
    on centred.evaluation_id = artifacts.artifact_id
left join compared on centred.evaluation_id = compared.evaluation_id
left join centred as base_models
    on compared.base_evaluation_id = base_models.evaluation_id and centred.task = base_models.task
left join {{ ref('stg_checkpoints') }} as checkpoints
    on centred.checkpoint_id = checkpoints.checkpoint_id
