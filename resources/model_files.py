"""Finds the files that a language model is made of, and tells models apart by their content.

Nothing here loads torch or transformers: what a model is, is read off its files.
"""

import contextlib
import hashlib
import importlib.util
import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from circuitseer_assets.errors import ModelError
from circuitseer_assets.records import digest_of
from circuitseer_assets.settings import (
    BaseModelSettings,
    GgufModel,
    HubModel,
    LocalModel,
    resolve_path,
)

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt"]
# Other formats of the same weights, in folders of their own or under Mistral's name.
_NOT_TRANSFORMERS = ["*/*", "consolidated*.safetensors"]
# What saving a model writes into its configuration that changes nothing it computes.
_VOLATILE_CONFIG = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """What a score depends on: the weights with their configuration, and the tokens."""

    model_digest: str
    tokenizer_id: str


def model_digest(settings: BaseModelSettings, *, cache: Path) -> str:
    """Returns the digest of the model's weights and configuration, without loading them.

    Raises:
        ModelError: the model is missing, unreachable, or has no safetensors.
    """
    return identify_model(settings, cache=cache).model_digest


def identify_model(settings: BaseModelSettings, *, cache: Path) -> ModelIdentity:
    """Returns the identity of the model's weights and of its tokens, from its files alone.

    File digests are remembered in `cache` by path, size and time of change.

    Raises:
        ModelError: the model is missing, unreachable, or has no safetensors.
    """
    if isinstance(settings, GgufModel):
        digest = _file_digest(find_gguf_file(settings), cache)
        return ModelIdentity(digest[:16], digest_of([digest, settings.prompt_template]))
    folder = find_model_folder(settings)
    weights = sorted(_file_digest(path, cache) for path in folder.glob("*.safetensors"))
    config = read_config(folder)
    stable = {name: value for name, value in config.items() if name not in _VOLATILE_CONFIG}
    files = {
        name: _file_digest(folder / name, cache)
        for name in _TOKENIZER_FILES
        if (folder / name).is_file()
    }
    return ModelIdentity(digest_of([weights, stable]), digest_of([files, settings.prompt_template]))


def read_config(folder: Path) -> dict[str, Any]:
    """Returns a model folder's config.json.

    Raises:
        ModelError: it is no JSON.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(
            f"base_model must have a config.json that is JSON, {folder.name}'s is not ({error}); "
            f"download or save the model again"
        ) from error
    return dict(config)


def _file_digest(path: Path, cache: Path) -> str:
    state = path.stat()
    key = f"{path.resolve()}|{state.st_size}|{state.st_mtime_ns}"
    memory = cache / "file_digests.json"
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(memory.read_text(encoding="utf-8"))
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        cache.mkdir(parents=True, exist_ok=True)
        partial = partial_path(memory)
        partial.write_text(json.dumps(known, indent=0), encoding="utf-8")
        partial.replace(memory)
    return known[key]


def partial_path(path: Path) -> Path:
    """Returns a name beside `path` that nobody else uses; renaming it to `path` is atomic."""
    return path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:12]}")


# where a model lies -------------------------------------------------------------------------------


def find_model_folder(settings: LocalModel | HubModel) -> Path:
    """Returns the folder with the model's config and safetensors, downloaded where need be.

    Raises:
        ModelError: the folder or the hub's model is missing, unreachable, or has no safetensors.
    """
    if isinstance(settings, HubModel):
        folder, name = _downloaded(settings), settings.repo_id
    else:
        folder, name = resolve_path(settings.path), settings.path
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"base_model must be a folder with a config.json, got {name}; "
            f"set base_model.path in the settings file"
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"base_model must have its weights as safetensors, {name} has none (pickled weights "
            f"can run code and are refused); save the model with save_pretrained"
        )
    return folder


def _downloaded(settings: HubModel) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            settings.repo_id,
            revision=settings.revision,
            allow_patterns=_HUB_FILES,
            ignore_patterns=_NOT_TRANSFORMERS,
        )
    except (OSError, ValueError) as error:  # HTTP errors and offline mode are kinds of OSError
        reason = " ".join(str(error).split())[:200]
        raise ModelError(
            f"base_model {settings.repo_id} at {settings.revision[:12]} cannot be had from the "
            f"Hugging Face hub ({type(error).__name__}: {reason}); check the network, HF_TOKEN and "
            f"HF_HUB_OFFLINE, or use a local folder"
        ) from error
    return Path(folder)


def _package_folder(package: str) -> Path:
    # Found, not imported: such a package may want a runtime that is not used here. A name with a
    # dot in it would import the package before the dot.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"base_model.package must be an installed package, got {package!r}; install it, or "
            f"name a file"
        )
    return Path(spec.submodule_search_locations[0]).resolve()


def find_gguf_file(settings: GgufModel) -> Path:
    """Returns the path of the GGUF file, by itself or inside an installed package.

    Raises:
        ModelError: there is no such file or package, or the file lies outside of the package.
    """
    if settings.package is None:
        path = resolve_path(settings.file)
    else:
        folder = _package_folder(settings.package)
        path = (folder / settings.file).resolve()
        if not path.is_relative_to(folder):
            raise ModelError(
                f"base_model.file must lie in the package {settings.package}, got "
                f"{settings.file!r}; name a file by its path alone, without a package"
            )
    if not path.is_file():
        raise ModelError(
            f"base_model.file must be a GGUF file, {settings.file!r} does not exist; "
            f"set base_model.file in the settings file"
        )
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise ModelError(f"base_model.file must be a GGUF file, {settings.file!r} is not one")
    return path
