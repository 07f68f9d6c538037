{{ config(meta={'dagster': {'ref': {'name': 'stg_head_importance'}}}) }}
-- A ranking has one row for every head of the model, and at least one chosen.
select
    rankings.head_ranking_id,
    rankings.num_layers * rankings.num_heads as num_expected,
    count(importance.head) as num_found,
    count(importance.head) filter (where importance.is_reasoning_head) as num_chosen
from {{ ref('stg_head_rankings') }} as rankings
left join {{ ref('stg_head_importance') }} as importance
    on rankings.head_ranking_id = importance.head_ranking_id
group by rankings.head_ranking_id, rankings.num_layers, rankings.num_heads
having num_found <> num_expected or num_chosen = 0
