select
    study_id,
    endpoint,
    method,
    against,
    difference,
    stderr,
    degrees_of_freedom,
    ci_low,
    ci_high,
    bootstrap_low,
    bootstrap_high,
    p_value,
    p_holm,
    smallest_effect,
    verdict
from {{ source('warehouse', 'study_comparisons') }}
