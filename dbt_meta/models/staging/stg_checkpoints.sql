select
    checkpoint_id,
    subset_id,
    mlflow_model_uri,
    num_steps,
    first_loss_nats,
    final_loss_nats,
    num_train_tokens,
    duration_s
from {{ source('warehouse', 'checkpoints') }}
