"""What the warehouse and the artifacts know of one sample, and of a row that never became one."""

from collections.abc import Sequence
from typing import Any

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.explanation import Explanation, ReadTokens
from circuitseer_assets.records import Sample
from resources.sample_files import read_samples
from resources.subset_chain import SubsetChain
from resources.token_reader import TokenReader, open_token_reader
from resources.warehouse import Warehouse

_MAX_NAMED = 5
_BY_PREFIX = """
select sample_id from samples where starts_with(sample_id, $name) order by sample_id limit $limit
"""
_SAMPLE_AT = """
select samples.sample_id
from samples inner join corpus_members as member on samples.sample_id = member.sample_id
where member.corpus_id = $corpus_id and samples.source = $source and samples.position = $position
"""
_QUARANTINED_AT = """
select reason, detail from quarantined_samples
where corpus_id = $corpus_id and source = $source and position = $position
"""
_SUBSETS = """
select member.subset_id
from subset_members as member inner join artifacts as made on member.subset_id = made.artifact_id
where member.sample_id = $sample_id
order by made.created_at desc, member.subset_id
"""
_UNSCORED = """
select reason, detail from unscored_samples
where scorer_id = $scorer_id and sample_id = $sample_id
"""
_CORPORA = """
select member.corpus_id
from corpus_members as member inner join artifacts as made on member.corpus_id = made.artifact_id
where member.sample_id = $sample_id
order by made.created_at desc
"""


def explain_sample(chain: SubsetChain, name: str) -> Explanation:
    """Returns everything known of a sample, its tokens with the attention that each receives.

    Args:
        chain: the subset asked about, by whose scores it is ranked.
        name: the sample's id, a beginning of it that no other has, or SOURCE:POSITION of its row.

    Raises:
        ArtifactError: no sample has this name, several have, or the model that read them is
            not there any more.
    """
    row = _find_quarantined(chain, name)
    if row is not None:
        return row
    sample_id = find_sample_id(chain, name)
    with open_token_reader(chain) as reader:
        return explain_samples(chain, [sample_id], reader)[0]


def explain_samples(
    chain: SubsetChain, sample_ids: Sequence[str], reader: TokenReader
) -> list[Explanation]:
    """Returns the explanations of samples in the order given.

    Raises:
        ArtifactError: the text of one is gone.
    """
    wanted = set(sample_ids)
    samples = {s.sample_id: s for s in read_samples(chain.samples, sample_ids=wanted)}
    ranks, places = chain.order.standings(wanted), chain.order.places(wanted)
    explained = []
    for sample_id in sample_ids:
        sample = samples.get(sample_id) or _read_elsewhere(chain, sample_id)
        status, reason = _status(chain, sample, sample_id in samples, sample_id in ranks)
        read = reader.read(sample)
        explained.append(
            Explanation(
                sample_id=sample_id,
                source=sample.source,
                position=sample.position,
                status=status,
                reason=reason,
                subset_id=chain.subset.artifact_id,
                scorer=chain.scoring.scorer,
                reading=chain.scoring.reading,
                heads=tuple(str(head) for head in reader.heads),
                standing=ranks.get(sample_id),
                place=places.get(sample_id),
                subsets=_subsets_of(chain.home.warehouse, sample_id),
                read=read if isinstance(read, ReadTokens) else None,
                unread=None if isinstance(read, ReadTokens) else f"{read.reason}: {read.detail}",
            )
        )
    return explained


def find_sample_id(chain: SubsetChain, name: str) -> str:
    """Returns the id of the sample that `name` names.

    Raises:
        ArtifactError: no sample has this name, or several have.
    """
    warehouse = chain.home.warehouse
    source, colon, position = name.rpartition(":")
    if colon and position.isdecimal():
        where = {"corpus_id": chain.corpus.artifact_id, "source": source, "position": int(position)}
        found = _column(warehouse, _SAMPLE_AT, **where)
    else:
        found = _column(warehouse, _BY_PREFIX, name=name, limit=_MAX_NAMED + 1) if name else []
    if name in found:
        return name
    if len(found) == 1:
        return found[0]
    if not found:
        raise ArtifactError(
            f"SAMPLE_ID must be a sample's id, the beginning of one, or SOURCE:POSITION of its "
            f"row, got {name!r}; take one from the table samples or from circuitseer export"
        )
    shown = ", ".join(found[:_MAX_NAMED]) + (", ..." if len(found) > _MAX_NAMED else "")
    raise ArtifactError(
        f"SAMPLE_ID must be the beginning of one sample's id, got {name!r}, which is that of "
        f"{shown}; give more of it"
    )


def _find_quarantined(chain: SubsetChain, name: str) -> Explanation | None:
    source, colon, position = name.rpartition(":")
    if not colon or not position.isdecimal():
        return None
    where = {"corpus_id": chain.corpus.artifact_id, "source": source, "position": int(position)}
    rows = chain.home.warehouse.query(_QUARANTINED_AT, where).to_pylist()
    if not rows:
        return None
    return Explanation(
        sample_id=None,
        source=source,
        position=int(position),
        status="quarantined",
        reason="; ".join(f"{row['reason']}: {row['detail']}" for row in rows),
        subset_id=chain.subset.artifact_id,
        scorer=chain.scoring.scorer,
        reading=chain.scoring.reading,
        heads=(),
        unread="The row was never a sample, so no model has read it.",
    )


def _status(
    chain: SubsetChain, sample: Sample, is_in_corpus: bool, is_scored: bool
) -> tuple[str, str]:
    """Returns where a sample stands, and why, in one sentence."""
    if is_scored:
        drawn = "and drawn" if sample.sample_id in chain.members else "and not drawn"
        return "scored", f"in the pool {drawn}"
    if not is_in_corpus:
        return "outside", f"{chain.corpus.artifact_id}, which the subset is of, does not hold it"
    for kind in ("ranking", "confirmation"):
        if sample.sample_id in getattr(chain.probes, kind):
            return "probe", f"a {kind} probe: heads are chosen by it, so it is never selected"
    if sample.prompt_id in chain.probes.prompt_ids:
        return "probe", "it has the prompt of a probe, so it is never selected"
    matches = [row for row in chain.contaminated if row["sample_id"] == sample.sample_id]
    if matches:
        problems = ", ".join(f"{m['doc_id']} of {m['task']} ({m['rule']})" for m in matches[:3])
        more = f" and {len(matches) - 3} more" if len(matches) > 3 else ""
        return "contaminated", f"it repeats problem {problems}{more}, so it is never selected"
    key = {"scorer_id": chain.scorer_id, "sample_id": sample.sample_id}
    rows = chain.home.warehouse.query(_UNSCORED, key).to_pylist()
    if rows:
        return "unscored", f"{rows[0]['reason']}: {rows[0]['detail']}"
    raise ArtifactError(
        f"{sample.sample_id} must be scored, or something must say why it is not, and nothing of "
        f"{chain.scores.artifact_id} does; run make run"
    )


def _read_elsewhere(chain: SubsetChain, sample_id: str) -> Sample:
    """Returns a sample that this chain's corpus does not hold, from the newest one that does."""
    artifacts = chain.home.artifacts
    for corpus_id in _column(chain.home.warehouse, _CORPORA, sample_id=sample_id):
        if artifacts.is_present("corpus", corpus_id):
            folder = artifacts.folder("corpus", corpus_id) / "samples"
            for sample in read_samples(folder, sample_ids={sample_id}):
                return sample
    raise ArtifactError(
        f"the text of {sample_id} must lie in some corpus, and the files of all that held it are "
        f"gone; run make run on that corpus again"
    )


def _subsets_of(warehouse: Warehouse, sample_id: str) -> tuple[str, ...]:
    return tuple(_column(warehouse, _SUBSETS, sample_id=sample_id))


def _column(warehouse: Warehouse, sql: str, **params: Any) -> list[str]:
    values: list[str] = warehouse.query(sql, params).column(0).to_pylist()
    return values
