-- What it took to make an artifact; those made before this table have no row.
create table artifact_costs (
    artifact_id varchar primary key,
    duration_s double not null,
    num_forwards double,
    num_tokens bigint
);

-- What selection may draw from; pools made before this table have no rows.
create table pool_members (
    pool_id varchar not null,
    sample_id varchar not null,
    primary key (pool_id, sample_id)
);
