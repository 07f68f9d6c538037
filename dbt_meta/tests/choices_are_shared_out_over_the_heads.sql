{{ config(meta={'dagster': {'ref': {'name': 'head_usage'}}}) }}
-- The heads of a model are together chosen as often as they would be by lot, some more, some less.
with heads as (
    select distinct
        model_digest,
        layer,
        head,
        share_of_rankings_choosing,
        share_choosing_at_random
    from {{ ref('head_usage') }}
)

select
    model_digest,
    sum(share_of_rankings_choosing) as chosen,
    sum(share_choosing_at_random) as by_lot
from heads
group by model_digest
having abs(chosen - by_lot) > 1e-9
