"""The base model that an artifact was made with: what it was called then, and where it is now."""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter

from circuitseer_assets.errors import CircuitSeerError
from circuitseer_assets.method.verification import NotCheckedError
from circuitseer_assets.records import Artifact
from circuitseer_assets.settings import BaseModelSettings
from resources.home import Home
from resources.language_model import resolve_dtype
from resources.model_files import identify_model

IDENTITY = {
    "model_digest": "weights or configuration",
    "tokenizer_id": "tokenizer or prompt template",
    "dtype": "data type",
}
"""What a model is known by in the settings of an artifact that was made with it, in words."""

_RECORDED = "select base_model from artifact_evidence where artifact_id = $id"
_SETTINGS: TypeAdapter[BaseModelSettings] = TypeAdapter(BaseModelSettings)


def recorded_settings(home: Home, artifact: Artifact) -> BaseModelSettings | None:
    """Returns the settings that named the base model when the artifact was made, if recorded."""
    rows = home.warehouse.query(_RECORDED, {"id": artifact.artifact_id}).to_pylist()
    if not rows or rows[0]["base_model"] is None:
        return None
    return _SETTINGS.validate_json(rows[0]["base_model"])


def name_of(base_model: BaseModelSettings) -> str:
    """Returns where settings find a base model: a path, a hub's id or a file."""
    values = base_model.model_dump()
    return str(next(values[key] for key in ("path", "repo_id", "file") if values.get(key)))


class ModelIdentities:
    """What models are, each read once from its files, whatever these say of their time.

    Where a folder of remembered digests is given, files that look unchanged are not read again.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._cache = cache
        self._known: dict[str, dict[str, str]] = {}

    def of(self, base_model: BaseModelSettings) -> dict[str, str]:
        """Returns the identity of the model that these settings name.

        Raises:
            ModelError: it is not there, or is no model.
        """
        key = base_model.model_dump_json()
        if key not in self._known:
            with tempfile.TemporaryDirectory() as no_memory:
                identity = identify_model(base_model, cache=self._cache or Path(no_memory))
            self._known[key] = {**asdict(identity), "dtype": resolve_dtype(base_model)}
        return self._known[key]

    def differing(self, base_model: BaseModelSettings, artifact: Artifact) -> Iterator[str]:
        """Returns the keys of `IDENTITY` in which an artifact was made with something else.

        Raises:
            ModelError: the model is not there, or is no model.
        """
        now = self.of(base_model)
        for name in IDENTITY:
            was = artifact.settings.get(name)
            if was is not None and was != now[name]:
                yield name


def find_base_model(
    home: Home, artifact: Artifact, identities: ModelIdentities
) -> BaseModelSettings:
    """Returns settings that name the model an artifact was made with: those of then, or in use.

    Raises:
        NotCheckedError: neither leads to that model.
    """
    said = []
    for settings in (recorded_settings(home, artifact), home.settings().base_model):
        if settings is None:
            continue
        try:
            differing = list(identities.differing(settings, artifact))
        except CircuitSeerError as error:
            said.append(str(error))
            continue
        if not differing:
            return settings
        said.append(f"{name_of(settings)} has another {IDENTITY[differing[0]]}")
    raise NotCheckedError(
        f"the base model that {artifact.artifact_id} was made with is not there: "
        f"{'; '.join(dict.fromkeys(said))}"
    )
