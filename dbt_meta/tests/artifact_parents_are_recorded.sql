{{ config(meta={'dagster': {'ref': {'name': 'stg_artifacts'}}}) }}
-- What an artifact was made from is an artifact too.
with parents as (
    select
        artifact_id,
        unnest(parents) as parent_id
    from {{ ref('stg_artifacts') }}
)

select
    parents.artifact_id,
    parents.parent_id
from parents
left join {{ ref('stg_artifacts') }} as recorded
    on parents.parent_id = recorded.artifact_id
where recorded.artifact_id is null
