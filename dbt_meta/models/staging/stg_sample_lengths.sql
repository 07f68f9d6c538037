select
    tokenizer_id,
    sample_id,
    num_prompt_tokens,
    num_response_tokens
from {{ source('warehouse', 'sample_lengths') }}
