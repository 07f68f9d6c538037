with rankings as (
    select
        artifacts.artifact_id as head_ranking_id,
        artifacts.settings ->> '$.model_digest' as model_digest,
        shapes.num_layers,
        shapes.num_heads,
        artifacts.created_at
    from {{ ref('stg_artifacts') }} as artifacts
    inner join {{ ref('stg_head_rankings') }} as shapes
        on artifacts.artifact_id = shapes.head_ranking_id
),

subsets_of_ranking as (
    select
        ancestor_id as head_ranking_id,
        count(*) as num_subsets
    from {{ ref('artifact_lineage') }}
    where stage = 'subset' and ancestor_stage = 'head_ranking'
    group by ancestor_id
),

heads as (
    select
        rankings.model_digest,
        rankings.num_layers,
        rankings.num_heads,
        rankings.created_at,
        importance.*,
        rank() over (
            partition by importance.head_ranking_id
            order by importance.delta_loss_nats desc
        ) as importance_rank,
        avg(cast(importance.is_reasoning_head as integer)) over (
            partition by importance.head_ranking_id
        ) as share_of_heads_chosen
    from {{ ref('stg_head_importance') }} as importance
    inner join rankings on importance.head_ranking_id = rankings.head_ranking_id
),

-- A head has a namesake in every model of as many layers and heads: a base model and what it was
-- fine-tuned to, say. In other models layer and head say nothing.
models_of_shape as (
    select
        num_layers,
        num_heads,
        layer,
        head,
        count(distinct model_digest) as num_models,
        count(distinct model_digest) filter (where is_reasoning_head) as num_models_choosing
    from heads
    group by num_layers, num_heads, layer, head
)

select
    heads.head_ranking_id,
    heads.layer,
    heads.head,
    heads.layer || '.' || heads.head as head_name,
    heads.model_digest,
    heads.importance_rank,
    heads.delta_loss_nats,
    heads.ci_low as ci_low_nats,
    heads.ci_high as ci_high_nats,
    heads.is_reasoning_head,
    heads.confirmed_delta_nats,
    heads.p_holm,
    heads.is_reasoning_head and coalesce(heads.p_holm <= 0.05, false) as is_confirmed,
    heads.delta_control_nats,
    case
        when heads.is_reasoning_head then coalesce(subsets_of_ranking.num_subsets, 0)
        else 0
    end as num_subsets,
    count(*) over same_head as num_rankings_of_model,
    count(*) filter (where heads.is_reasoning_head) over same_head as num_rankings_choosing,
    avg(cast(heads.is_reasoning_head as integer)) over same_head as share_of_rankings_choosing,
    avg(heads.share_of_heads_chosen) over same_head as share_choosing_at_random,
    min(heads.importance_rank) over same_head as best_importance_rank,
    max(heads.importance_rank) over same_head as worst_importance_rank,
    models_of_shape.num_models as num_models_of_shape,
    models_of_shape.num_models_choosing,
    heads.created_at
from heads
inner join models_of_shape
    on
        heads.num_layers = models_of_shape.num_layers
        and heads.num_heads = models_of_shape.num_heads
        and heads.layer = models_of_shape.layer
        and heads.head = models_of_shape.head
left join subsets_of_ranking on heads.head_ranking_id = subsets_of_ranking.head_ranking_id
window same_head as (partition by heads.model_digest, heads.layer, heads.head)
