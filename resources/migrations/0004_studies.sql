-- One method with one seed: what it selected, what that cost, and what came of it.
create table study_cells (
    study_cell_id varchar primary key,
    method varchar not null,
    seed bigint not null,
    checkpoint_id varchar not null,
    evaluation_id varchar not null,
    subset_id varchar not null,
    pass_at_1 double not null,
    held_out_loss_nats double,
    num_samples bigint not null,
    num_pool bigint not null,
    effective_pool_size double not null,
    score_tilt_sd double not null,
    random_tilt_sd double not null,
    num_selection_forwards bigint not null,
    selection_s double not null,
    num_train_tokens bigint not null,
    num_steps bigint not null,
    training_s double not null
);

-- One method against another, on one endpoint, over the same seeds and problems; on either endpoint
-- more is better.
create table study_comparisons (
    study_id varchar not null,
    endpoint varchar not null,
    method varchar not null,
    against varchar not null,
    difference double not null,
    stderr double not null,
    degrees_of_freedom double not null,
    ci_low double not null,
    ci_high double not null,
    bootstrap_low double not null,
    bootstrap_high double not null,
    p_value double not null,
    p_holm double,
    smallest_effect double not null,
    verdict varchar not null,
    primary key (study_id, endpoint, method, against)
);
