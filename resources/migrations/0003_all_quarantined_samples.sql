-- All that was left out and why: rows no corpus could use, and samples a scorer could not score.
-- scorer_id is null for the former; the latter stand once a scorer, in the corpus that brought them
-- first.
create view all_quarantined_samples as
select
    corpus_id,
    source,
    position,
    reason,
    detail,
    cast(null as varchar) as scorer_id
from quarantined_samples
union all
select
    samples.corpus_id,
    samples.source,
    samples.position,
    unscored_samples.reason,
    unscored_samples.detail,
    unscored_samples.scorer_id
from unscored_samples
inner join samples on unscored_samples.sample_id = samples.sample_id;
