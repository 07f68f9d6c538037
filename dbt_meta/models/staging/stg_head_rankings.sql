select
    head_ranking_id,
    num_layers,
    num_heads,
    clean_loss_nats,
    clean_confirmation_loss_nats,
    clean_control_loss_nats,
    boundary_gap_nats,
    split_half_overlap,
    joint_delta_chosen_nats,
    joint_delta_random_nats,
    joint_p_value
from {{ source('warehouse', 'head_rankings') }}
