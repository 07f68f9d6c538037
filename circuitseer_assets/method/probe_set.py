"""The stage `probe_set`: the clean corpus in, ranking and confirmation probes and the pool out.

Probes are the rows with the smallest permanent random numbers: a digest of the seed and the
sample's id, so that other rows coming or going change nobody's number. The set is sticky: members
of the previous set stay while they are among the candidates, and only vanished ones are replaced.

Not found in the summaries read: the article's probe set and its size.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from circuitseer_assets.errors import CorpusError
from circuitseer_assets.records import Sample
from circuitseer_assets.settings import ProbeSetSettings


@dataclass(frozen=True, slots=True)
class ProbeCandidate:
    """What the draw needs to know of one clean sample."""

    sample_id: str
    prompt_id: str
    num_characters: int


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The probes by sample id, in the order drawn, and the ids of all their prompts, sorted."""

    ranking: tuple[str, ...]
    confirmation: tuple[str, ...]
    control: tuple[str, ...]
    prompt_ids: tuple[str, ...]


def candidate_of(sample: Sample) -> ProbeCandidate:
    """Returns the sample as a candidate; its characters are those of prompt and response."""
    num_characters = len(sample.prompt) + len(sample.response)
    return ProbeCandidate(sample.sample_id, sample.prompt_id, num_characters)


def draw_probe_set(
    candidates: Iterable[ProbeCandidate],
    settings: ProbeSetSettings,
    *,
    control: Sequence[Sample] = (),
    keep: ProbeSet | None = None,
) -> ProbeSet:
    """Returns the probe set drawn from the clean corpus.

    A prompt gives at most one probe. Rows longer than `max_characters` are not eligible, nor are
    those whose prompt is a control text's. Memory grows with the number of probes only.

    Args:
        candidates: Every clean sample of the corpus, once; read once.
        settings: How many probes of each kind, and which rows may become one.
        control: The control texts, which the probes and the pool are kept disjoint from.
        keep: The previous set, drawn with the same settings.

    Raises:
        CorpusError: too few eligible rows for the probes, or none left for the pool.
    """
    num_probes = settings.num_ranking + settings.num_confirmation
    control_prompts = {text.prompt_id for text in control}
    kept = dict.fromkeys(() if keep is None else keep.ranking + keep.confirmation, "")
    drawn = _SmallestOfEachPrompt(size=num_probes + len(kept))
    prompts_seen: set[str] = set()
    for candidate in candidates:
        if candidate.prompt_id in control_prompts:
            continue
        if len(prompts_seen) <= num_probes:
            prompts_seen.add(candidate.prompt_id)
        if candidate.sample_id in kept:
            kept[candidate.sample_id] = candidate.prompt_id
        elif _is_eligible(candidate, settings):
            drawn.add(candidate.prompt_id, candidate.sample_id, seed=settings.seed)
    prompts = {sample_id: prompt_id for sample_id, prompt_id in kept.items() if prompt_id}
    slots = _slots_of(keep, settings)
    members = [sample_id if sample_id in prompts else None for sample_id in slots]
    taken = {prompts[sample_id] for sample_id in members if sample_id is not None}
    fresh = {s: p for s, p in drawn.in_order() if p not in taken}
    _check_enough(len(taken) + len(fresh), prompts_seen, settings)
    replacements = iter(fresh)
    probes = [next(replacements) if member is None else member for member in members]
    prompts |= fresh
    return ProbeSet(
        ranking=tuple(probes[: settings.num_ranking]),
        confirmation=tuple(probes[settings.num_ranking :]),
        control=tuple(text.sample_id for text in control),
        prompt_ids=tuple(sorted(control_prompts | {prompts[probe] for probe in probes})),
    )


class _SmallestOfEachPrompt:
    """The `size` prompts with the smallest numbers, each by the sample that has its smallest.

    A prompt that falls out has `size` others before it, whose numbers only fall: it comes back
    only by a smaller number, so leaving it out in between changes nothing.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._smallest: dict[str, tuple[int, str]] = {}

    def add(self, prompt_id: str, sample_id: str, *, seed: int) -> None:
        entry = (_permanent_number(seed, sample_id), sample_id)
        if entry < self._smallest.get(prompt_id, (1 << 64, "")):
            self._smallest[prompt_id] = entry
        if len(self._smallest) > 2 * self._size:
            self._smallest = dict(self._sorted())

    def in_order(self) -> list[tuple[str, str]]:
        """Returns (sample_id, prompt_id), the smallest number first."""
        return [(sample_id, prompt_id) for prompt_id, (_, sample_id) in self._sorted()]

    def _sorted(self) -> list[tuple[str, tuple[int, str]]]:
        return sorted(self._smallest.items(), key=lambda item: item[1])[: self._size]


def _permanent_number(seed: int, sample_id: str) -> int:
    # The stage's name keeps these numbers independent of the subset's draw with the same seed.
    key = f"probe_set:{seed}:{sample_id}"
    return int.from_bytes(hashlib.md5(key.encode()).digest()[:8], "little")


def _is_eligible(candidate: ProbeCandidate, settings: ProbeSetSettings) -> bool:
    return settings.max_characters is None or candidate.num_characters <= settings.max_characters


def _slots_of(keep: ProbeSet | None, settings: ProbeSetSettings) -> list[str | None]:
    """Returns who held each place before, ranking probes first; None where nobody did."""
    slots: list[str | None] = []
    kept_ranking, kept_confirmation = (
        ((), ()) if keep is None else (keep.ranking, keep.confirmation)
    )
    for previous, num in (
        (kept_ranking, settings.num_ranking),
        (kept_confirmation, settings.num_confirmation),
    ):
        slots += [*previous[:num], *[None] * (num - len(previous))]
    return slots


def _check_enough(num_prompts: int, prompts_seen: set[str], settings: ProbeSetSettings) -> None:
    num_ranking, num_confirmation = settings.num_ranking, settings.num_confirmation
    rule = (
        "probe_set.num_ranking + probe_set.num_confirmation must be fewer than the corpus's clean "
        "and different prompts"
    )
    asked = f"{num_ranking} + {num_confirmation}"
    if num_prompts < num_ranking + num_confirmation:
        limit = settings.max_characters
        eligible = "" if limit is None else f" of at most probe_set.max_characters = {limit}"
        raise CorpusError(
            f"{rule}, got {asked} with {num_prompts} eligible prompts{eligible}; ask for fewer "
            f"probes{'' if limit is None else ', raise max_characters'} or give a larger corpus"
        )
    if len(prompts_seen) <= num_ranking + num_confirmation:
        raise CorpusError(
            f"{rule}, got {asked} with {len(prompts_seen)} prompts, which leaves none to select "
            "from; ask for fewer probes or give a larger corpus"
        )
