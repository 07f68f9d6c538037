with rankings as (
    select
        artifact_id as head_ranking_id,
        settings ->> '$.model_digest' as model_digest,
        created_at
    from {{ ref('stg_artifacts') }}
    where stage = 'head_ranking'
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
        rankings.created_at,
        importance.*,
        rank() over (
            partition by importance.head_ranking_id
            order by importance.delta_loss_nats desc
        ) as importance_rank
    from {{ ref('stg_head_importance') }} as importance
    inner join rankings on importance.head_ranking_id = rankings.head_ranking_id
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
    heads.created_at
from heads
left join subsets_of_ranking on heads.head_ranking_id = subsets_of_ranking.head_ranking_id
window same_head as (partition by heads.model_digest, heads.layer, heads.head)
