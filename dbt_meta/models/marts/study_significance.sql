select
    compared.study_id,
    compared.endpoint,
    compared.method,
    compared.against,
    compared.p_holm is not null as is_primary,
    compared.difference,
    compared.stderr,
    compared.degrees_of_freedom,
    compared.ci_low,
    compared.ci_high,
    compared.bootstrap_low,
    compared.bootstrap_high,
    compared.paired_low,
    compared.paired_high,
    compared.pooled_low,
    compared.pooled_high,
    compared.p_value,
    compared.paired_p_value,
    compared.pooled_p_value,
    compared.p_holm,
    case when compared.stderr > 0 then compared.smallest_effect end as smallest_effect,
    compared.verdict,
    artifacts.dagster_run_id,
    artifacts.created_at
from {{ ref('stg_study_comparisons') }} as compared
inner join {{ ref('stg_artifacts') }} as artifacts
    on compared.study_id = artifacts.artifact_id
