-- What lets an artifact be verified later: its manifest's digest, and the settings that named the
-- base model it was made with. Artifacts made before this table have no row.
create table artifact_evidence (
    artifact_id varchar primary key,
    manifest_sha256 varchar not null,
    base_model json
);
