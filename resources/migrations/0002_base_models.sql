-- What the settings first called the model with these weights: a name, no part of any identity.
create table base_models (
    model_digest varchar primary key,
    source varchar not null,
    name varchar not null,
    revision varchar
);
