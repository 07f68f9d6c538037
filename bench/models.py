"""The models and texts that measurements run on: both models come without any hub."""

import itertools
import tempfile
from pathlib import Path

from circuitseer_assets.method.corpus import curate_rows
from circuitseer_assets.records import Sample, TokenizedText
from circuitseer_assets.settings import PROJECT_ROOT, Settings, load_settings
from resources.corpora import columns_of, read_rows
from resources.language_model import LanguageModel, load_language_model

MODELS = ("tiny", "smollm2")
# A GGUF file is converted once, not at every measurement.
CACHE = Path(tempfile.gettempdir()) / "circuitseer-bench-models"


def load_model(name: str) -> LanguageModel:
    """Returns the base model of the preset `name`, on the CPU in float32."""
    return load_language_model(preset_settings(name).base_model, cache=CACHE)


def read_probes(name: str, model: LanguageModel, num_probes: int) -> list[TokenizedText]:
    """Returns the first problems of the preset's corpus, with their responses, as probes.

    The preset's bound on a probe's characters is kept: GSM-symbolic problems for `smollm2`.
    """
    settings = preset_settings(name)
    limit = settings.probe_set.max_characters or 10**9
    rows = curate_rows(read_rows(settings.corpus), columns_of(settings.corpus))
    samples = (row for row in rows if isinstance(row, Sample))
    short = (s for s in samples if len(s.prompt) + len(s.response) <= limit)
    return [
        model.tokenize(sample.sample_id, sample.messages, sample.response)
        for sample in itertools.islice(short, num_probes)
    ]


def preset_settings(name: str) -> Settings:
    """Returns the settings of the preset `name`."""
    return load_settings(PROJECT_ROOT / "presets" / f"{name}.yaml")
