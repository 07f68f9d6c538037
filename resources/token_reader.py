"""Reads samples once more as they were scored, token by token, with the model loaded once."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from circuitseer_assets.errors import ArtifactError
from circuitseer_assets.method.explanation import ReadTokens, Token
from circuitseer_assets.method.head_sets import choose_heads
from circuitseer_assets.method.verification import NotCheckedError
from circuitseer_assets.records import HeadId, HeadRanking, Sample, UnscoredSample
from circuitseer_assets.settings import ScoringSettings
from resources.language_model import LanguageModel, load_language_model
from resources.recorded_model import ModelIdentities, find_base_model
from resources.subset_chain import SubsetChain

if TYPE_CHECKING:
    from circuitseer_assets.method.token_attention import TokenAttention


@dataclass(frozen=True)
class TokenReader:
    """The base model, and the heads that a pool was scored by."""

    chain: SubsetChain
    base_model: LanguageModel
    heads: tuple[HeadId, ...]

    def read(self, sample: Sample) -> ReadTokens | UnscoredSample:
        """Returns what each token of a sample receives, or why that cannot be said."""
        from circuitseer_assets.method.token_attention import read_token_attention

        scoring = self.chain.scoring
        response = sample.response if scoring.span == "response" else None
        text = self.base_model.tokenize(sample.sample_id, sample.messages, response)
        attention = read_token_attention(
            self.base_model.model, text, heads=self.heads, settings=scoring
        )
        if isinstance(attention, UnscoredSample):
            return attention
        spelled = self.base_model.spell(sample.messages, response)
        is_lift = scoring.scorer == "attention" and scoring.reading == "attention_lift"
        return ReadTokens(
            tokens=_tokens(spelled, attention),
            variance=attention.variance,
            is_score=attention.is_score,
            is_lift=is_lift,
        )


@contextmanager
def open_token_reader(chain: SubsetChain) -> Iterator[TokenReader]:
    """Yields a reader with the base model, which is let go of at the end.

    It is the model that the pool was scored by, wherever the settings in use have moved on to.

    Raises:
        ArtifactError: that model is not there, or is not the same any more.
        ModelError: the model cannot be loaded.
    """
    home = chain.home
    try:
        settings = find_base_model(home, chain.scores, ModelIdentities(home.models))
    except NotCheckedError as error:
        raise ArtifactError(
            f"{error}; put it back, or name a subset whose model is there"
        ) from error
    base_model = load_language_model(settings, cache=home.models)
    yield TokenReader(chain, base_model, heads_read(chain.head_ranking, chain.scoring, base_model))


def heads_read(
    ranking: HeadRanking, scoring: ScoringSettings, base_model: LanguageModel
) -> tuple[HeadId, ...]:
    """Returns the heads that a scorer reads, or takes away, by its settings."""
    retrieval: tuple[HeadId, ...] = ()
    if scoring.heads == "retrieval":
        from circuitseer_assets.method.retrieval_heads import find_retrieval_heads

        num_chosen = len(ranking.reasoning_heads)
        retrieval = find_retrieval_heads(base_model.model, num_chosen=num_chosen, seed=scoring.seed)
    return choose_heads(
        ranking.reasoning_heads,
        ranking.num_layers,
        ranking.num_heads,
        scoring,
        retrieval_heads=retrieval,
    )


def _tokens(spelled: tuple[str, ...], attention: "TokenAttention") -> tuple[Token, ...]:
    start, stop = attention.counted
    return tuple(
        Token(text, attention.received[i - start], attention.weights[i - start])
        if start <= i < stop
        else Token(text)
        for i, text in enumerate(spelled)
    )
