"""The registry of scorers: every way in which a sample can get the score it is selected by.

A scorer reads samples through a `Reader`, the base model and its chosen heads, and returns for each
sample a score, the higher the rather selected, or the reason why it has none. `SCORERS` names them;
the setting `scoring.scorer` chooses one. A new one is a function and one entry here. Functions are
named, not imported: the registry is read where nothing of the model's stack is loaded.
"""

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.records import Sample, SampleScore, UnscoredSample
from circuitseer_assets.settings import ScoringSettings

if TYPE_CHECKING:
    from circuitseer_assets.method.reader import Reader

Score: TypeAlias = Callable[
    ["Reader", Iterable[Sample], ScoringSettings], Iterator[SampleScore | UnscoredSample]
]
"""Takes the reader, the samples (read lazily) and the settings; returns scores in any order."""


@dataclass(frozen=True, slots=True)
class Scorer:
    """One way to score samples, with what the stage and a comparison have to know about it.

    Attributes:
        function: a `Score`, as `module.name` in this package.
        source: where it was published, or what it is there for.
        num_forwards: how many forwards of the base model one sample costs.
        reads_response: samples with equal prompts may differ in score.
        uses_heads: the score depends on the chosen heads.
        compares_samples: the score depends on the rest of the pool as well, and is of that pool.
    """

    function: str
    source: str
    num_forwards: int
    reads_response: bool = False
    uses_heads: bool = False
    compares_samples: bool = False

    def load(self) -> Score:
        """Returns the function."""
        module, _, name = self.function.rpartition(".")
        function: Score = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return function


SCORERS: Mapping[str, Scorer] = {
    "attention": Scorer(
        "sample_scores.score_by_attention",
        source="CircuitSeer, arXiv 2510.18470",
        num_forwards=1,
        uses_heads=True,
    ),
    "random": Scorer(
        "baselines.score_equally",
        source="a control: equal scores, so that the draw alone decides",
        num_forwards=0,
    ),
    "length": Scorer(
        "baselines.score_length",
        source="a control: the tokens of prompt and response",
        num_forwards=0,
        reads_response=True,
    ),
    "shortness": Scorer(
        "baselines.score_shortness",
        source="a control: 1 / tokens of the prompt, which the published score nearly follows",
        num_forwards=0,
    ),
    "max_loss": Scorer(
        "baselines.score_loss",
        source="the mean loss of the response given the prompt, the hardest first",
        num_forwards=1,
        reads_response=True,
    ),
    "ifd": Scorer(
        "baselines.score_instruction_following_difficulty",
        source="Cherry LLM, arXiv 2308.12032",
        num_forwards=2,
        reads_response=True,
    ),
    "quality": Scorer(
        "baselines.score_asked_quality",
        source="Ask-LLM, arXiv 2402.09668",
        num_forwards=1,
        reads_response=True,
    ),
    "diversity": Scorer(
        "baselines.score_diversity",
        source="k-center greedy: Gonzalez 1985; Sener and Savarese, arXiv 1708.00489",
        num_forwards=1,
        compares_samples=True,
    ),
    "attention_influence": Scorer(
        "baselines.score_attention_influence",
        source="AttentionInfluence, arXiv 2505.07293; AIR, arXiv 2512.13279",
        num_forwards=2,
        reads_response=True,
        uses_heads=True,
    ),
    "oracle": Scorer(
        "baselines.score_by_planted_noise",
        source="a positive control: it knows which solutions were planted wrong",
        num_forwards=0,
        reads_response=True,
    ),
}


def find_scorer(settings: ScoringSettings) -> Scorer:
    """Returns the scorer that `scoring.scorer` names.

    Raises:
        SettingsError: there is none of that name.
    """
    scorer = SCORERS.get(settings.scorer)
    if scorer is None:
        raise SettingsError(
            f"scoring.scorer must be one of {', '.join(SCORERS)}, got {settings.scorer!r}; "
            f"correct it in circuitseer.yaml"
        )
    return scorer


def reads_response(settings: ScoringSettings) -> bool:
    """Returns whether samples with equal prompts may differ in score."""
    if settings.scorer == "attention":
        return settings.span == "response"
    return find_scorer(settings).reads_response
