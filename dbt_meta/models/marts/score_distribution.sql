with ranges as (
    select
        scorer_id,
        min(score) as lowest,
        max(score) as highest,
        count(*) as num_scored
    from {{ ref('stg_sample_scores') }}
    group by scorer_id
),

numbers as (
    select unnest(range(1, 21)) as bin
),

bins as (
    select
        ranges.scorer_id,
        ranges.num_scored,
        numbers.bin,
        ranges.lowest + (ranges.highest - ranges.lowest) * (numbers.bin - 1) / 20 as score_from,
        ranges.lowest + (ranges.highest - ranges.lowest) * numbers.bin / 20 as score_to
    from ranges
    cross join numbers
),

binned as (
    select
        scores.scorer_id,
        scores.num_tokens,
        case
            when ranges.highest > ranges.lowest
                then least(
                    cast(floor(
                        20 * (scores.score - ranges.lowest) / (ranges.highest - ranges.lowest)
                    ) as bigint) + 1,
                    20
                )
            else 1
        end as bin
    from {{ ref('stg_sample_scores') }} as scores
    inner join ranges on scores.scorer_id = ranges.scorer_id
),

counts as (
    select
        scorer_id,
        bin,
        count(*) as num_samples,
        avg(num_tokens) as mean_num_tokens
    from binned
    group by scorer_id, bin
)

select
    bins.scorer_id,
    bins.bin,
    bins.score_from,
    bins.score_to,
    coalesce(counts.num_samples, 0) as num_samples,
    coalesce(counts.num_samples, 0) / bins.num_scored as share_of_samples,
    counts.mean_num_tokens
from bins
left join counts on bins.scorer_id = counts.scorer_id and bins.bin = counts.bin
