"""Loads language models and turns chats into tokens: a local folder, a hub model, or a GGUF file.

Safetensors or GGUF only: pickled weights can run code, and so can a model's own Python files; both
are refused. Importing this module loads neither torch nor transformers.
"""

import contextlib
import functools
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from circuitseer_assets.errors import ModelError
from circuitseer_assets.method.chat_text import question_span, render_prompt, render_response
from circuitseer_assets.records import HeadId, Message, TokenizedText
from circuitseer_assets.settings import BaseModelSettings, GgufModel
from resources.model_files import (
    ModelIdentity,
    find_gguf_file,
    find_model_folder,
    identify_model,
    model_digest,
    partial_path,
)

__all__ = [
    "LanguageModel",
    "ModelFiles",
    "ModelIdentity",
    "find_model_files",
    "identify_model",
    "load_language_model",
    "model_digest",
    "resolve_device",
    "resolve_dtype",
]

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from circuitseer_assets.method.reader import Reader


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model in evaluation mode, its tokenizer, and the identities of both."""

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    identity: ModelIdentity
    max_length: int
    prompt_template: str | None = None

    @property
    def model_digest(self) -> str:
        """The digest of weights and configuration."""
        return self.identity.model_digest

    @property
    def tokenizer_id(self) -> str:
        """The digest of the tokenizer and of the template in use."""
        return self.identity.tokenizer_id

    def tokenize(
        self, sample_id: str, messages: Sequence[Message], response: str | None = None
    ) -> TokenizedText:
        """Returns the chat as the model reads it, up to where it would answer, or with `response`.

        The prompt's tokens are always a prefix of the conversation's; the response ends with the
        template's end of turn.

        Raises:
            ModelError: the model has no chat template, or one that drops the problem's text.
        """
        chat = self._encode_chat(messages, response)
        num_prompt = chat.num_prompt_tokens
        content = _token_span(chat.offsets[:num_prompt], chat.content)
        question = question_span(chat.text, chat.content)
        return TokenizedText(
            sample_id,
            tuple(chat.ids),
            content,
            num_prompt,
            _tokens_with_digits(chat.text, chat.offsets, content),
            _token_span(chat.offsets[:num_prompt], question)[0],
        )

    def spell(self, messages: Sequence[Message], response: str | None = None) -> tuple[str, ...]:
        """Returns the text of every token that `tokenize` gives the chat; joined, all of its text.

        A token that stands for no text, such as the one a text begins with, shows its name. Of a
        character that several tokens share the last has it.
        """
        chat = self._encode_chat(messages, response)
        starts = [0, *(start for start, _ in chat.offsets[1:]), len(chat.text)]
        names = self.tokenizer.convert_ids_to_tokens(chat.ids)
        return tuple(
            names[i] if start == stop else chat.text[starts[i] : max(starts[i], starts[i + 1])]
            for i, (start, stop) in enumerate(chat.offsets)
        )

    def _encode_chat(self, messages: Sequence[Message], response: str | None) -> "_EncodedChat":
        prompt = render_prompt(self.tokenizer, messages, self.prompt_template)
        ids, offsets = self._encode(prompt.text, special=prompt.add_special_tokens)
        if response is None:
            return _EncodedChat(prompt.text, prompt.content, ids, offsets, len(ids))
        reply = render_response(self.tokenizer, messages, response, prompt, self.prompt_template)
        text = prompt.text + reply
        whole, whole_offsets = self._encode(text, special=prompt.add_special_tokens)
        if whole[: len(ids)] != ids:
            # A token across the border: generation would never see it, so neither may we.
            more, more_offsets = self._encode(reply, special=False)
            at = len(prompt.text)
            whole = ids + more
            whole_offsets = offsets + [(start + at, stop + at) for start, stop in more_offsets]
        return _EncodedChat(text, prompt.content, whole, whole_offsets, len(ids))

    def find_token(self, text: str) -> int | None:
        """Returns the id of the token whose text is exactly this; None where it takes several."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return int(ids[0]) if len(ids) == 1 and self.tokenizer.decode(ids) == text else None

    def reader(self, heads: Sequence[HeadId], *, max_batch_tokens: int) -> "Reader":
        """Returns the model as scorers see it: how it reads, and the heads that are looked at."""
        from circuitseer_assets.method.reader import Reader

        return Reader(
            model=self.model,
            tokenize=self.tokenize,
            heads=tuple(heads),
            find_token=self.find_token,
            max_batch_tokens=max_batch_tokens,
        )

    def _encode(self, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(
            text, add_special_tokens=special, return_offsets_mapping=True, verbose=False
        )
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
        if special and len(ids) > 1 and ids[-1] == self.tokenizer.eos_token_id:
            ended_by_tokenizer = offsets[-1][0] == offsets[-1][1]
            if ended_by_tokenizer:
                return ids[:-1], offsets[:-1]
        return ids, offsets


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model that another program loads: its folder, and what is known without its weights."""

    folder: Path
    identity: ModelIdentity
    dtype: str
    max_length: int
    prompt_template: str | None = None

    @property
    def model_digest(self) -> str:
        """The digest of weights and configuration."""
        return self.identity.model_digest

    @property
    def has_defaults(self) -> bool:
        """Whether the model brings settings of its own for generating."""
        return (self.folder / "generation_config.json").is_file()


@dataclass(frozen=True, slots=True)
class _EncodedChat:
    """A chat's text and tokens; the content is of the problem's own text, in characters."""

    text: str
    content: tuple[int, int]
    ids: list[int]
    offsets: list[tuple[int, int]]
    num_prompt_tokens: int


def _token_span(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, int]:
    inside = [i for i, (start, stop) in enumerate(offsets) if stop > span[0] and start < span[1]]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _tokens_with_digits(
    text: str, offsets: Sequence[tuple[int, int]], content: tuple[int, int]
) -> tuple[int, ...]:
    return tuple(
        i for i in range(*content) if any(letter.isdigit() for letter in text[slice(*offsets[i])])
    )


# loading ------------------------------------------------------------------------------------------


def load_language_model(settings: BaseModelSettings, *, cache: Path) -> LanguageModel:
    """Returns the model, ready to be looked into: evaluation mode, SDPA, no gradients.

    `auto` means CUDA and bfloat16 where there is a GPU, else the CPU and float32. A GGUF file is
    converted once into `cache`, as float32 safetensors, and loaded from there afterwards.

    Raises:
        ModelError: the model is missing, unreachable, unsafe, of an unknown architecture, or has no
            chat template while `prompt_template` is not set.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    identity, folder = _identify_and_find(settings, cache)
    tokenizer = _load_tokenizer(folder, settings.prompt_template)
    device, dtype = _device_and_dtype(settings)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
        model = model.to(device)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        raise _cannot_load(folder, error) from error
    model = model.eval().requires_grad_(False)
    max_length = _max_length(model.config, tokenizer)
    return LanguageModel(model, tokenizer, identity, max_length, settings.prompt_template)


def find_model_files(settings: BaseModelSettings, *, cache: Path) -> ModelFiles:
    """Returns the model's files, for a program that loads them by itself.

    Raises:
        ModelError: as `load_language_model`, but for what only the weights could tell.
    """
    from transformers import AutoConfig

    identity, folder = _identify_and_find(settings, cache)
    tokenizer = _load_tokenizer(folder, settings.prompt_template)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_load(folder, error) from error
    dtype, max_length = resolve_dtype(settings), _max_length(config, tokenizer)
    return ModelFiles(folder, identity, dtype, max_length, settings.prompt_template)


def _identify_and_find(settings: BaseModelSettings, cache: Path) -> tuple[ModelIdentity, Path]:
    identity = identify_model(settings, cache=cache)
    if isinstance(settings, GgufModel):
        gguf = find_gguf_file(settings)
        return identity, _converted(gguf, cache / f"gguf-{identity.model_digest}")
    return identity, find_model_folder(settings)


def _max_length(config: Any, tokenizer: "PreTrainedTokenizerBase") -> int:
    lengths = (
        getattr(config.get_text_config(), "max_position_embeddings", None),
        tokenizer.model_max_length,
    )
    return int(min(length for length in lengths if length is not None))


def _load_tokenizer(folder: Path, prompt_template: str | None) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _cannot_load(folder, error) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"base_model must have a fast tokenizer (tokenizer.json), {folder.name} has only a "
            f"slow one; convert it with transformers"
        )
    if tokenizer.chat_template is None and prompt_template is None:
        raise ModelError(
            f"base_model must have a chat template, {folder.name} has none; set "
            f"base_model.prompt_template, for example 'Question: {{prompt}}\\nAnswer:'"
        )
    return tokenizer


def resolve_dtype(settings: BaseModelSettings) -> str:
    """Returns the number format the model is loaded in; it decides a score's last digits.

    Raises:
        ModelError: the device is not one of this machine.
    """
    if settings.dtype != "auto":
        return settings.dtype
    return str(_device_and_dtype(settings)[1]).removeprefix("torch.")


def resolve_device(settings: BaseModelSettings) -> "torch.device":
    """Returns the device the model is loaded onto.

    Raises:
        ModelError: the device is not one of this machine.
    """
    return _device_and_dtype(settings)[0]


def _device_and_dtype(settings: BaseModelSettings) -> "tuple[torch.device, torch.dtype]":
    import torch

    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ModelError(
            f"base_model.device must be a device of this machine, got {name!r} ({reason}); "
            f"set it to 'auto' or 'cpu'"
        ) from error
    if settings.dtype == "auto":
        return device, torch.bfloat16 if device.type == "cuda" else torch.float32
    return device, getattr(torch, settings.dtype)


def _converted(gguf: Path, folder: Path) -> Path:
    """Returns `folder`, holding the GGUF file's model as float32 safetensors with its tokenizer."""
    if (folder / "config.json").is_file():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        with _gguf_parsed_once():
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, dtype=torch.float32, trust_remote_code=False, **place
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, trust_remote_code=False, **place)
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise _cannot_load(gguf, error) from error
    # The loaded model counts as quantised and refuses to be saved; a fresh one does not.
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    automatic: Any = AutoModelForCausalLM
    model = automatic.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.generation_config = loaded.generation_config
    _remove_abandoned(folder)
    partial = partial_path(folder)
    partial.mkdir(parents=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        with contextlib.suppress(OSError):  # another process was faster
            partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _remove_abandoned(folder: Path) -> None:
    """Removes what a conversion that was killed more than an hour ago has left beside `folder`."""
    for partial in folder.parent.glob(f"{folder.name}.partial-*"):
        if time.time() - partial.stat().st_mtime > 3600:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _gguf_parsed_once() -> Iterator[None]:
    # transformers reads the file's 100,000 strings three times over, and builds the table of tensor
    # names once a module: most of a minute, for the same answers.
    import gguf

    originals = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, original in originals.items():
        setattr(gguf, name, functools.cache(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(gguf, name, original)


def _cannot_load(source: Path, error: Exception) -> ModelError:
    reason = " ".join(str(error).split())[:300]
    return ModelError(
        f"base_model {source.name} cannot be loaded ({type(error).__name__}: {reason}); choose a "
        f"decoder that transformers loads without code of its own"
    )
