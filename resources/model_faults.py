"""Trying a saved model: does it load whole, is it finite, does it generate?"""

import gc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NUM_EXAMPLES = 5


def find_model_faults(folder: Path) -> list[str]:
    """Returns what keeps the model in a folder from use, in words; nothing for a sound model.

    The model is loaded as it was saved, on the CPU, and let go of again. Tensors that are tied to
    others need not be stored.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Whatever a damaged file makes the libraries raise is the finding, not a bug of the check.
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except Exception as error:
        return [f"the model does not load: {_in_words(error)}"]
    model, info = loaded
    try:
        faults = _find_weight_faults(model, info)
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        return faults or _find_generation_faults(model.eval(), tokenizer)
    except Exception as error:
        return [f"the model does not generate: {_in_words(error)}"]
    finally:
        del model, loaded
        gc.collect()  # a model's modules refer to each other, and a later stage needs the memory


def _find_weight_faults(model: Any, info: Mapping[str, Any]) -> list[str]:
    import torch

    faults = []
    for kind in ("missing", "unexpected", "mismatched"):
        if keys := sorted(map(str, info[f"{kind}_keys"])):
            faults.append(f"{len(keys)} tensors are {kind}: {', '.join(keys[:NUM_EXAMPLES])}")
    # A tied tensor is named once.
    tensors = [*model.named_parameters(), *model.named_buffers()]
    bad = [name for name, tensor in tensors if not torch.isfinite(tensor).all()]
    if bad:
        named = ", ".join(bad[:NUM_EXAMPLES])
        faults.append(f"{len(bad)} tensors hold values that are not finite: {named}")
    return faults


def _find_generation_faults(model: Any, tokenizer: Any) -> list[str]:
    inputs = tokenizer("1 + 1 =", return_tensors="pt")
    written = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=1,
        do_sample=False,
    )
    num_new = int(written.shape[1] - inputs["input_ids"].shape[1])
    return [] if num_new == 1 else [f"asked for 1 token, the model generated {num_new}"]


def _in_words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
