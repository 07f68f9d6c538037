with subsets as (
    select * from {{ ref('stg_artifacts') }}
    where stage = 'subset'
),

-- A kept probe set may come from an older corpus: the nearest of each stage is the subset's own.
ancestors as (
    select
        artifact_id as subset_id,
        arg_min(ancestor_id, distance) filter (where ancestor_stage = 'corpus') as corpus_id,
        arg_min(ancestor_id, distance) filter (where ancestor_stage = 'pool') as pool_id,
        arg_min(ancestor_id, distance) filter (where ancestor_stage = 'probe_set') as probe_set_id,
        arg_min(ancestor_id, distance) filter (
            where ancestor_stage = 'head_ranking'
        ) as head_ranking_id,
        arg_min(ancestor_id, distance) filter (
            where ancestor_stage = 'sample_scores'
        ) as sample_scores_id
    from {{ ref('artifact_lineage') }}
    where stage = 'subset'
    group by artifact_id
),

heads as (
    select
        head_ranking_id,
        count(*) as num_reasoning_heads,
        string_agg(layer || '.' || head, ', ' order by layer, head) as reasoning_heads
    from {{ ref('stg_head_importance') }}
    where is_reasoning_head
    group by head_ranking_id
),

members as (
    select
        subset_id,
        count(*) as num_samples,
        avg(score) as mean_score
    from {{ ref('stg_subset_members') }}
    group by subset_id
),

-- One length per sample and tokenizer: a join here multiplies no member.
tokens as (
    select
        members.subset_id,
        cast(
            sum(lengths.num_prompt_tokens + lengths.num_response_tokens) as bigint
        ) as num_tokens
    from {{ ref('stg_subset_members') }} as members
    inner join ancestors on members.subset_id = ancestors.subset_id
    inner join {{ ref('stg_artifacts') }} as scores
        on ancestors.sample_scores_id = scores.artifact_id
    inner join {{ ref('stg_sample_lengths') }} as lengths
        on
            (scores.settings ->> '$.tokenizer_id') = lengths.tokenizer_id
            and members.sample_id = lengths.sample_id
    group by members.subset_id
),

pools as (
    select
        pool_id,
        count(*) as num_pool
    from {{ ref('stg_pool_members') }}
    group by pool_id
),

-- A subset is made without an MLflow run; those that train on it have one.
trainings as (
    select
        lineage.ancestor_id as subset_id,
        string_agg(
            checkpoints.mlflow_run_id, ', ' order by checkpoints.created_at, checkpoints.artifact_id
        ) as training_mlflow_run_ids
    from {{ ref('artifact_lineage') }} as lineage
    inner join {{ ref('stg_artifacts') }} as checkpoints
        on lineage.artifact_id = checkpoints.artifact_id
    where lineage.stage = 'checkpoint' and lineage.ancestor_stage = 'subset'
    group by lineage.ancestor_id
)

select
    subsets.artifact_id as subset_id,
    members.num_samples,
    tokens.num_tokens,
    pools.num_pool,
    base_models.name as base_model,
    base_models.revision as base_model_revision,
    scores.settings ->> '$.model_digest' as model_digest,
    scores.settings ->> '$.tokenizer_id' as tokenizer_id,
    heads.num_reasoning_heads,
    heads.reasoning_heads,
    scores.settings ->> '$.scorer_id' as scorer_id,
    scores.settings ->> '$.scoring.scorer' as scorer,
    scores.settings ->> '$.scoring.reading' as score_reading,
    scores.settings ->> '$.scoring.heads' as score_heads,
    cast(subsets.settings ->> '$.selection.seed' as bigint) as seed,
    cast(subsets.settings ->> '$.selection.budget.fraction' as double) as budget_fraction,
    cast(subsets.settings ->> '$.selection.budget.samples' as bigint) as budget_samples,
    cast(subsets.settings ->> '$.selection.budget.tokens' as bigint) as budget_tokens,
    subsets.settings ->> '$.selection.weights' as weights,
    cast(subsets.settings ->> '$.selection.power' as double) as power,
    cast(subsets.settings ->> '$.selection.temperature' as double) as temperature,
    subsets.settings ->> '$.selection.debias' as debias,
    subsets.settings ->> '$.selection.sampling' as sampling,
    members.mean_score,
    ancestors.corpus_id,
    corpus.settings ->> '$.corpus.source' as corpus_source,
    coalesce(
        corpus.settings ->> '$.corpus.repo_id',
        corpus.settings ->> '$.corpus.dataset',
        nullif(array_to_string(corpus.settings ->> '$.corpus.paths[*]', ', '), ''),
        corpus.settings ->> '$.corpus.source'
    ) as corpus_name,
    corpus.settings ->> '$.corpus.revision' as corpus_revision,
    corpus.data_version as corpus_data_version,
    ancestors.pool_id,
    ancestors.probe_set_id,
    ancestors.head_ranking_id,
    ancestors.sample_scores_id,
    subsets.data_version,
    subsets.code_version,
    subsets.dagster_run_id,
    trainings.training_mlflow_run_ids,
    subsets.created_at
from subsets
inner join ancestors on subsets.artifact_id = ancestors.subset_id
left join members on subsets.artifact_id = members.subset_id
left join tokens on subsets.artifact_id = tokens.subset_id
left join pools on ancestors.pool_id = pools.pool_id
left join heads on ancestors.head_ranking_id = heads.head_ranking_id
left join trainings on subsets.artifact_id = trainings.subset_id
left join {{ ref('stg_artifacts') }} as scores
    on ancestors.sample_scores_id = scores.artifact_id
left join {{ ref('stg_base_models') }} as base_models
    on (scores.settings ->> '$.model_digest') = base_models.model_digest
left join {{ ref('stg_artifacts') }} as corpus
    on ancestors.corpus_id = corpus.artifact_id
