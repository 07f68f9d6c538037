"""The records that flow between stages: frozen, without behaviour beyond their own identity.

Ids are hexadecimal digests of content, so that the same thing has the same id on every machine.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

STAGES = (
    "corpus",
    "probe_set",
    "head_ranking",
    "sample_scores",
    "subset",
    "checkpoint",
    "evaluation",
    "audit",
)

# A chosen head is confirmed when its Holm-adjusted p-value on fresh probes is at most this.
CONFIRMATION_LEVEL = 0.05
# Beyond this rank correlation with the prompt's length, in size, a score ranks mostly by length.
MAX_LENGTH_CORRELATION = 0.6
# The column in which a generated corpus says of a row that its solution was planted wrong.
PLANTED_NOISE_COLUMN = "is_planted_noise"


_CANONICAL_JSON = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def digest_of(value: Any) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of `value` as canonical JSON.

    Raises:
        TypeError: `value` holds something JSON cannot say exactly.
    """
    return hashlib.sha256(_CANONICAL_JSON.encode(value).encode()).hexdigest()[:16]


def artifact_id_of(
    stage: str, settings: Mapping[str, Any], parents: Sequence[str], code_version: str
) -> str:
    """Returns the identity that decides reuse: a digest of everything the artifact is made from."""
    return f"{stage}-{digest_of([stage, settings, sorted(parents), code_version])}"


@dataclass(frozen=True, slots=True)
class ModelUse:
    """What a stage asked of a model: whole forwards of one sequence, and tokens with padding."""

    num_forwards: float = 0.0
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class PoolSize:
    """How large a pool is: its samples, those that a scorer could score, and all their tokens."""

    num_samples: int
    num_scored: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Sample:
    """One usable row of a corpus: a prompt, the response to learn, and where it came from."""

    sample_id: str
    prompt_id: str
    source: str
    position: int
    messages: tuple[Message, ...]
    response: str
    answer: str | None = None
    original: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt(self) -> str:
        """The prompt's text, turns separated by a blank line."""
        return "\n\n".join(message.content for message in self.messages)


@dataclass(frozen=True, slots=True)
class QuarantinedRow:
    """A row that cannot be used, kept with the reason."""

    source: str
    position: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """A prompt, or a prompt and its response, as the model reads it.

    Attributes:
        sample_id: the sample's.
        input_ids: the tokens.
        content: the half-open span of the problem's own text, template left out.
        response_start: the index of the response's first token; the length without a response.
        numbers: the indices of the content's tokens that have a digit.
        question_start: where the content's last sentence begins; None where nobody looked.
    """

    sample_id: str
    input_ids: tuple[int, ...]
    content: tuple[int, int]
    response_start: int
    numbers: tuple[int, ...] = ()
    question_start: int | None = None


@dataclass(frozen=True, slots=True, order=True)
class HeadId:
    """One attention head, counted from the bottom layer."""

    layer: int
    head: int

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}"


@dataclass(frozen=True, slots=True)
class HeadImportance:
    """What ablating one head costs, in nats a token, and how sure that is.

    `ci_low` and `ci_high` are a 95 % interval: of the confirmation probes for a chosen head, of
    the ranking probes otherwise.
    """

    head: HeadId
    delta_loss_nats: float
    stderr: float
    ci_low: float
    ci_high: float
    num_probes: int
    measured_on_all: bool
    is_reasoning_head: bool
    confirmed_delta_nats: float | None = None
    p_holm: float | None = None
    delta_control_nats: float | None = None


@dataclass(frozen=True, slots=True)
class JointAblation:
    """The loss with all chosen heads ablated at once, against as many others of the same layers."""

    delta_chosen_nats: float
    delta_random_nats: tuple[float, ...]
    p_value: float


@dataclass(frozen=True, slots=True)
class HeadRanking:
    """All heads in order of importance, and the evidence for those chosen."""

    importance: tuple[HeadImportance, ...]
    num_layers: int
    num_heads: int
    clean_loss_nats: float
    clean_confirmation_loss_nats: float
    clean_control_loss_nats: float | None
    boundary_gap_nats: float
    split_half_overlap: float | None
    joint: JointAblation | None

    @property
    def reasoning_heads(self) -> tuple[HeadId, ...]:
        """The chosen heads, by (layer, head)."""
        return tuple(sorted(row.head for row in self.importance if row.is_reasoning_head))


@dataclass(frozen=True, slots=True)
class SampleLength:
    """The tokens of one sample's prompt, and of its response."""

    sample_id: str
    num_prompt_tokens: int
    num_response_tokens: int


@dataclass(frozen=True, slots=True)
class SampleScore:
    """The score of one sample's prompt; `num_tokens` are the tokens the score was taken over.

    `is_truncated` says that what the model read was cut.
    """

    sample_id: str
    score: float
    num_tokens: int
    is_truncated: bool = False


@dataclass(frozen=True, slots=True)
class UnscoredSample:
    """A sample whose prompt cannot be scored, with the reason."""

    sample_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class SubsetMember:
    """One drawn sample with all that decided its place in the draw."""

    sample_id: str
    score: float
    weight: float
    sampling_key: float
    inclusion_probability: float


@dataclass(frozen=True, slots=True)
class FineTuning:
    """What a fine-tuning did.

    `losses` holds (step, loss in nats a response token). `first_loss_nats` and `final_loss_nats`
    are means over the first and the last epoch, which saw the same samples; of less than two epochs
    over the first and the last quarter of the steps, at most 25. `num_train_tokens`
    counts the rows' tokens once, prompts included; `num_response_tokens` those that carry loss.
    `duration_s` is the time of the last call: a resumed training took longer in all.
    """

    losses: tuple[tuple[int, float], ...]
    num_steps: int
    num_samples: int
    num_train_tokens: int
    num_response_tokens: int
    dropped: tuple[str, ...]
    truncated: tuple[str, ...]
    first_loss_nats: float
    final_loss_nats: float
    duration_s: float

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """Returns the fine-tuning that `dataclasses.asdict` gave, after a way through JSON."""
        losses = tuple((step, loss) for step, loss in values["losses"])
        names = {name: tuple(values[name]) for name in ("dropped", "truncated")}
        return cls(**{**values, "losses": losses, **names})


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem of a benchmark, as the model is asked it."""

    task: str
    doc_id: str
    prompt: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether one answer to one problem was right."""

    task: str
    doc_id: str
    repeat: int
    correct: bool
    truncated: bool


@dataclass(frozen=True, slots=True)
class Artifact:
    """One row of the table `artifacts`: something made, from what, by which code."""

    artifact_id: str
    stage: str
    data_version: str
    parents: tuple[str, ...]
    settings: Mapping[str, Any]
    code_version: str
    dagster_run_id: str | None = None
    mlflow_run_id: str | None = None
    created_at: datetime | None = None
