-- One row for everything ever made; written last in the transaction that writes its rows.
create table artifacts (
    artifact_id varchar primary key,
    stage varchar not null,
    data_version varchar not null,
    parents varchar[] not null,
    settings json not null,
    code_version varchar not null,
    dagster_run_id varchar,
    mlflow_run_id varchar,
    created_at timestamp not null
);

-- What stood under an artifact id before it was made again with another content.
create table superseded_artifacts (
    artifact_id varchar not null,
    stage varchar not null,
    data_version varchar not null,
    parents varchar[] not null,
    settings json not null,
    code_version varchar not null,
    dagster_run_id varchar,
    mlflow_run_id varchar,
    created_at timestamp not null,
    superseded_at timestamp not null
);

create table corpus_members (
    corpus_id varchar not null,
    sample_id varchar not null,
    primary key (corpus_id, sample_id)
);

-- corpus_id is the version of the corpus that brought the sample first.
create table samples (
    sample_id varchar primary key,
    prompt_id varchar not null,
    corpus_id varchar not null,
    source varchar not null,
    position bigint not null
);

create table sample_lengths (
    tokenizer_id varchar not null,
    sample_id varchar not null,
    num_prompt_tokens bigint not null,
    num_response_tokens bigint not null,
    primary key (tokenizer_id, sample_id)
);

create table quarantined_samples (
    corpus_id varchar not null,
    source varchar not null,
    position bigint not null,
    reason varchar not null,
    detail varchar not null
);

create table probe_members (
    probe_set_id varchar not null,
    sample_id varchar not null,
    kind varchar not null check (kind in ('ranking', 'confirmation', 'control')),
    primary key (probe_set_id, sample_id)
);

-- What a ranking says beyond its single heads.
create table head_rankings (
    head_ranking_id varchar primary key,
    num_layers integer not null,
    num_heads integer not null,
    clean_loss_nats double not null,
    clean_confirmation_loss_nats double not null,
    clean_control_loss_nats double,
    boundary_gap_nats double not null,
    split_half_overlap double,
    joint_delta_chosen_nats double,
    joint_delta_random_nats double[],
    joint_p_value double
);

create table head_importance (
    head_ranking_id varchar not null,
    layer integer not null,
    head integer not null,
    delta_loss_nats double not null,
    stderr double not null,
    ci_low double not null,
    ci_high double not null,
    num_probes integer not null,
    measured_on_all boolean not null,
    confirmed_delta_nats double,
    p_holm double,
    delta_control_nats double,
    is_reasoning_head boolean not null,
    primary key (head_ranking_id, layer, head)
);

create table sample_scores (
    scorer_id varchar not null,
    sample_id varchar not null,
    score double not null,
    num_tokens bigint not null,
    primary key (scorer_id, sample_id)
);

create table unscored_samples (
    scorer_id varchar not null,
    sample_id varchar not null,
    reason varchar not null,
    detail varchar not null,
    primary key (scorer_id, sample_id)
);

create table subset_members (
    subset_id varchar not null,
    sample_id varchar not null,
    score double not null,
    weight double not null check (weight > 0),
    sampling_key double not null,
    inclusion_probability double not null,
    primary key (subset_id, sample_id)
);

create table checkpoints (
    checkpoint_id varchar primary key,
    subset_id varchar not null,
    mlflow_model_uri varchar not null,
    num_steps integer not null,
    first_loss_nats double not null,
    final_loss_nats double not null,
    num_train_tokens bigint not null,
    duration_s double not null
);

-- checkpoint_id is null where the base model answered; model_digest is that of who answered.
create table evaluation_outcomes (
    evaluation_id varchar not null,
    checkpoint_id varchar,
    model_digest varchar not null,
    task varchar not null,
    doc_id varchar not null,
    repeat integer not null,
    correct boolean not null,
    truncated boolean not null
);

create unique index one_outcome_a_repeat on evaluation_outcomes (
    evaluation_id, (coalesce(checkpoint_id, '')), task, doc_id, repeat
);
