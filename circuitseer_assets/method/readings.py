"""The registry of readings: what is made of the chosen heads' attention on a prompt.

`READINGS` names them; the setting `scoring.reading` chooses one. A reading is either of the
profile, how much each token receives, whose spread `sample_scores` takes; or of each head by
itself, a function in `head_readings`, whose mean over the heads is the score. A new one of that
kind is a function and one entry here. Functions are named, not imported: the registry is read where
torch is not loaded.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.settings import ScoringSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from circuitseer_assets.method.attention import AttentionCall
    from circuitseer_assets.method.head_readings import Marks

ReadHeads: TypeAlias = Callable[["AttentionCall", "Sequence[int]", "Marks"], "Tensor"]
"""Takes a layer's attention, some of its heads and the texts' marks; returns (B, h), float64."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading.

    Attributes:
        supposes: what it takes reasoning heads to do, or what it measures.
        of_heads: a `ReadHeads` of `head_readings`, None for a reading of the profile.
        marks_of_prompt: it looks at the prompt's own parts, so that `queries`, `tokens` and `span`
            have no say.
    """

    supposes: str
    of_heads: str | None = None
    marks_of_prompt: bool = False

    def load(self) -> ReadHeads:
        """Returns the function of a reading of each head."""
        module = importlib.import_module(f"{__package__}.head_readings")
        function: ReadHeads = getattr(module, self.of_heads or "")
        return function


def _of_prompt(supposes: str, function: str) -> Reading:
    return Reading(supposes, function, marks_of_prompt=True)


READINGS: Mapping[str, Reading] = {
    "attention_variance": Reading("spread unevenly, as published; falls with length by itself"),
    "attention_cv2": Reading("spread unevenly whatever the length: the variance times T^2"),
    "attention_lift": Reading("give tokens more than their place in the prompt would"),
    "attention_focus": Reading("look at few tokens at a time", "read_focus"),
    "content_mass": _of_prompt("look at the problem, and not at the template", "read_content_mass"),
    "number_mass": _of_prompt("look at the numbers", "read_number_mass"),
    "question_to_facts": _of_prompt(
        "look back from the question to what was given", "read_question_to_facts"
    ),
    "answer_to_content": _of_prompt(
        "gather the problem where the answer begins", "read_answer_to_content"
    ),
    "answer_to_numbers": _of_prompt(
        "gather its numbers where the answer begins", "read_answer_to_numbers"
    ),
    "look_back": _of_prompt("look far back within the problem", "read_look_back"),
}


def find_reading(settings: ScoringSettings) -> Reading:
    """Returns the reading that `scoring.reading` names.

    Raises:
        SettingsError: there is none of that name, or it is of the prompt and the span is not.
    """
    reading = READINGS.get(settings.reading)
    if reading is None:
        raise SettingsError(
            f"scoring.reading must be one of {', '.join(READINGS)}, got {settings.reading!r}; "
            f"correct it in circuitseer.yaml"
        )
    if reading.marks_of_prompt and settings.span != "prompt":
        raise SettingsError(
            f"scoring.span must be 'prompt' for the reading {settings.reading}, got "
            f"{settings.span!r}; choose another reading, or the prompt"
        )
    return reading
