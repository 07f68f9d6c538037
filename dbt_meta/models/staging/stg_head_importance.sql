select
    head_ranking_id,
    layer,
    head,
    delta_loss_nats,
    stderr,
    ci_low,
    ci_high,
    num_probes,
    measured_on_all,
    confirmed_delta_nats,
    p_holm,
    delta_control_nats,
    is_reasoning_head
from {{ source('warehouse', 'head_importance') }}
