-- The tables with a row a sample give up their primary keys: an index has to be held in memory
-- whole, and takes the longer for a row the more there are. That a row is there once is seen to
-- where rows are added, by a join, and checked by the dbt tests.
create table corpus_members_0009 (
    corpus_id varchar not null,
    sample_id varchar not null
);
insert into corpus_members_0009
select
    corpus_id,
    sample_id
from corpus_members;
drop table corpus_members;
alter table corpus_members_0009 rename to corpus_members;

create table samples_0009 (
    sample_id varchar not null,
    prompt_id varchar not null,
    corpus_id varchar not null,
    source varchar not null,
    position bigint not null
);
insert into samples_0009
select
    sample_id,
    prompt_id,
    corpus_id,
    source,
    position
from samples;
drop table samples;
alter table samples_0009 rename to samples;

create table sample_lengths_0009 (
    tokenizer_id varchar not null,
    sample_id varchar not null,
    num_prompt_tokens bigint not null,
    num_response_tokens bigint not null
);
insert into sample_lengths_0009
select
    tokenizer_id,
    sample_id,
    num_prompt_tokens,
    num_response_tokens
from sample_lengths;
drop table sample_lengths;
alter table sample_lengths_0009 rename to sample_lengths;

create table sample_scores_0009 (
    scorer_id varchar not null,
    sample_id varchar not null,
    score double not null,
    num_tokens bigint not null
);
insert into sample_scores_0009
select
    scorer_id,
    sample_id,
    score,
    num_tokens
from sample_scores;
drop table sample_scores;
alter table sample_scores_0009 rename to sample_scores;

create table unscored_samples_0009 (
    scorer_id varchar not null,
    sample_id varchar not null,
    reason varchar not null,
    detail varchar not null
);
insert into unscored_samples_0009
select
    scorer_id,
    sample_id,
    reason,
    detail
from unscored_samples;
drop table unscored_samples;
alter table unscored_samples_0009 rename to unscored_samples;

create table pool_members_0009 (
    pool_id varchar not null,
    sample_id varchar not null
);
insert into pool_members_0009
select
    pool_id,
    sample_id
from pool_members;
drop table pool_members;
alter table pool_members_0009 rename to pool_members;

create table subset_members_0009 (
    subset_id varchar not null,
    sample_id varchar not null,
    score double not null,
    weight double not null check (weight > 0),
    sampling_key double not null,
    inclusion_probability double not null
);
insert into subset_members_0009
select
    subset_id,
    sample_id,
    score,
    weight,
    sampling_key,
    inclusion_probability
from subset_members;
drop table subset_members;
alter table subset_members_0009 rename to subset_members;
