{{ config(meta={'dagster': {'ref': {'name': 'run_costs'}}}) }}
-- Every artifact has its row, and the shares of what one run made are the whole of it.
select artifacts.artifact_id
from {{ ref('stg_artifacts') }} as artifacts
left join {{ ref('run_costs') }} as costs
    on artifacts.artifact_id = costs.artifact_id
where costs.artifact_id is null
union all
select dagster_run_id
from {{ ref('run_costs') }}
where share_of_run_duration is not null
group by dagster_run_id
having abs(sum(share_of_run_duration) - 1) > 1e-9
