with cells as (
    select
        lineage.artifact_id as study_id,
        cells.*
    from {{ ref('artifact_lineage') }} as lineage
    inner join {{ ref('stg_study_cells') }} as cells
        on lineage.ancestor_id = cells.study_cell_id
    where lineage.stage = 'study_results'
),

left_out as (
    select
        artifact_id as study_id,
        created_at,
        unnest(
            map_entries(cast(json_extract(settings, '$.left_out') as map (varchar, varchar)))
        ) as method
    from {{ ref('stg_artifacts') }}
    where stage = 'study_results'
)

select
    cells.study_id,
    cells.method,
    count(*) as num_seeds,
    avg(cells.pass_at_1) as pass_at_1,
    stddev_samp(cells.pass_at_1) as pass_at_1_sd,
    avg(cells.held_out_loss_nats) as held_out_loss_nats,
    avg(cells.num_samples) as num_samples,
    avg(cells.num_train_tokens) as num_train_tokens,
    avg(cells.num_selection_forwards) as num_selection_forwards,
    avg(cells.selection_s) as selection_s,
    avg(cells.training_s) as training_s,
    avg(cells.effective_pool_size / cells.num_pool) as effective_share_of_pool,
    avg(cells.score_tilt_sd) as score_tilt_sd,
    max(artifacts.created_at) as created_at,
    cast(null as varchar) as left_out_because
from cells
inner join {{ ref('stg_artifacts') }} as artifacts
    on cells.study_id = artifacts.artifact_id
group by cells.study_id, cells.method
union all
select
    study_id,
    method.key as method,
    0 as num_seeds,
    null as pass_at_1,
    null as pass_at_1_sd,
    null as held_out_loss_nats,
    null as num_samples,
    null as num_train_tokens,
    null as num_selection_forwards,
    null as selection_s,
    null as training_s,
    null as effective_share_of_pool,
    null as score_tilt_sd,
    created_at,
    method.value as left_out_because
from left_out
