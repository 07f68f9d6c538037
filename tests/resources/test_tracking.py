"""MLflow for real, on SQLite in a temporary folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from circuitseer_assets.errors import ArtifactError, TrackingError
from circuitseer_assets.settings import PROJECT_ROOT
from resources.tracking import TrackedRun, Tracking
from resources.tracking_inputs import log_training_set

torch.set_num_threads(1)

# What any other process does with the URI, and nothing of this project.
READER = """
import json, os, sys
import mlflow
uri, store, prompt = sys.argv[1:]
mlflow.set_tracking_uri(store)
import mlflow.pyfunc, mlflow.transformers
pipeline = mlflow.transformers.load_model(uri)
chat = [{"role": "user", "content": prompt}]
answer = pipeline(chat, max_new_tokens=8, do_sample=False)[0]["generated_text"][-1]["content"]
predicted = mlflow.pyfunc.load_model(uri).predict([prompt])
print(json.dumps({"answer": answer, "predicted": list(predicted)}))
"""


@pytest.fixture(scope="module")
def tracking(tmp_path_factory: pytest.TempPathFactory) -> Tracking:
    home = tmp_path_factory.mktemp("mlflow")
    return Tracking(f"sqlite:///{home}/mlflow.db", artifact_root=home / "mlartifacts")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random model in a folder, as the checkpoint stage saves one."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    tokenizer = AutoTokenizer.from_pretrained(PROJECT_ROOT / "models/tiny")
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def logged(
    tracking: Tracking, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrackedRun, str]:
    """One finished run with everything a training logs, made in an empty working directory."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    before = Path.cwd()
    os.chdir(elsewhere)
    try:
        tags = {"dagster_run_id": "d-1", "artifact_id": "checkpoint-1", "dagster_asset": None}
        with tracking.run("checkpoint-1", tags) as run:
            run.log_params({"training": {"epochs": 1.0, "lora": {"rank": 4}}})
            for step in (1, 2, 3):
                run.log_metrics(step, {"loss": 1 / step, "nothing": float("nan")})
            pq.write_table(pa.table({"sample_id": ["a", "b", "c"]}), elsewhere / "members.parquet")
            members = elsewhere / "members.parquet"
            log_training_set(run, members, subset_id="subset-1", data_version="v" * 64)
            uri = run.log_checkpoint(checkpoint, tags={"artifact_id": "checkpoint-1"})
        assert sorted(path.name for path in elsewhere.iterdir()) == ["members.parquet"]
    finally:
        os.chdir(before)
    return run, uri


def test_a_run_holds_what_it_was_given_and_how_it_went(
    tracking: Tracking, logged: tuple[TrackedRun, str]
) -> None:
    run, _ = logged
    client = tracking.client()
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "checkpoint-1"
    assert stored.data.tags["dagster_run_id"] == "d-1"
    assert "dagster_asset" not in stored.data.tags
    assert stored.data.params == {"training.epochs": "1.0", "training.lora.rank": "4"}
    history = client.get_metric_history(run.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert "nothing" not in stored.data.metrics


def test_a_run_describes_itself_by_links_to_dagster_and_ids(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {
        "dagster_run_id": "d-1",
        "dagster_asset": "study/study_cell",
        "dagster_partition": "tiny|[0.1](x)",
        "artifact_id": "study-cell-1",
        "checkpoint_id": None,
        "subset_id": "<b>_subset_</b>",
    }

    def described() -> str:
        with tracking.run("cell", tags) as run:
            pass
        return str(tracking.client().get_run(run.run_id).data.tags["mlflow.note.content"])

    monkeypatch.delenv("CIRCUITSEER_DAGSTER_UI", raising=False)
    first, empty, *listed = described().splitlines()
    assert first == (
        "Made by the [Dagster run](http://127.0.0.1:3000/runs/d-1) of "
        "[study/study&#95;cell (tiny&#124;&#91;0.1&#93;(x))]"
        "(http://127.0.0.1:3000/assets/study/study_cell"
        "?view=partitions&partition=tiny%7C%5B0.1%5D%28x%29)."
    )
    assert (empty, listed) == (
        "",
        ["- artifact: study-cell-1", "- subset: &#60;b&#62;&#95;subset&#95;&#60;/b&#62;"],
    )
    monkeypatch.setenv("CIRCUITSEER_DAGSTER_UI", "https://dagster.example.org/a team/")
    assert "(https://dagster.example.org/a%20team/runs/d-1)" in described()


def test_a_run_that_dagster_has_no_part_in_has_no_description(tracking: Tracking) -> None:
    with tracking.run("alone", {"artifact_id": "checkpoint-1"}) as run:
        pass
    assert "mlflow.note.content" not in tracking.client().get_run(run.run_id).data.tags


def test_the_training_set_is_an_input_of_the_run(
    tracking: Tracking, logged: tuple[TrackedRun, str]
) -> None:
    [given] = tracking.client().get_run(logged[0].run_id).inputs.dataset_inputs
    assert given.dataset.name == "subset-1"
    assert given.dataset.digest == "v" * 36
    assert json.loads(given.dataset.profile) == {"num_rows": 3}
    assert [(tag.key, tag.value) for tag in given.tags] == [("mlflow.data.context", "training")]


def test_run_and_checkpoint_point_at_each_other(
    tracking: Tracking, logged: tuple[TrackedRun, str]
) -> None:
    run, uri = logged
    client = tracking.client()
    [output] = client.get_run(run.run_id).outputs.model_outputs
    model = client.get_logged_model(output.model_id)
    assert uri == f"models:/{model.model_id}"
    assert model.source_run_id == run.run_id
    assert model.experiment_id == run.experiment_id
    assert model.tags["artifact_id"] == "checkpoint-1"
    assert run.url == tracking.run_url(run.run_id)
    assert run.url.endswith(f"/#/experiments/{run.experiment_id}/runs/{run.run_id}")


def test_weights_lie_once_in_the_store(
    tracking: Tracking, logged: tuple[TrackedRun, str], checkpoint: Path
) -> None:
    folder = tracking.model_folder(logged[1])
    assert tracking.artifact_root is not None
    assert folder.is_relative_to(tracking.artifact_root)
    assert list(tracking.artifact_root.rglob("*.safetensors")) == [folder / "model.safetensors"]
    for path in checkpoint.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()


def test_a_fresh_process_loads_the_checkpoint_by_its_uri_and_generates(
    tracking: Tracking, logged: tuple[TrackedRun, str], checkpoint: Path, tmp_path: Path
) -> None:
    prompt = "Ada has 3 apples."
    done = subprocess.run(
        [sys.executable, "-c", READER, logged[1], tracking.uri, prompt],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["answer"] == greedy_answer(checkpoint, prompt)
    assert told["predicted"][0].startswith(prompt)


def greedy_answer(folder: Path, prompt: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = Qwen2ForCausalLM.from_pretrained(folder)
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    return tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def test_a_run_with_an_exception_has_failed(tracking: Tracking) -> None:
    with pytest.raises(ValueError, match="torn"), tracking.run("failing") as run:
        raise ValueError("torn")
    assert tracking.client().get_run(run.run_id).info.status == "FAILED"


def test_mlflows_global_settings_are_left_as_they_were(
    tracking: Tracking, logged: tuple[TrackedRun, str]
) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    tracking.model_folder(logged[1])
    assert mlflow.get_tracking_uri() == before != tracking.uri
    assert mlflow.active_run() is None


def test_telemetry_is_off(logged: tuple[TrackedRun, str]) -> None:
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()


def test_a_missing_model_is_named(tracking: Tracking) -> None:
    with pytest.raises(ArtifactError, match=r"models:/m-0 must be in the MLflow store .* make run"):
        tracking.model_folder("models:/m-0")


def test_a_model_whose_weights_are_gone_is_named(tracking: Tracking, checkpoint: Path) -> None:
    with tracking.run("emptied") as run:
        uri = run.log_checkpoint(checkpoint)
    (tracking.model_folder(uri) / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match="must hold a config and safetensors"):
        tracking.model_folder(uri)


def test_a_server_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    down = Tracking("http://127.0.0.1:9")
    with (
        pytest.raises(TrackingError, match=r"http://127.0.0.1:9 must answer to start a run"),
        down.run("nowhere"),
    ):
        pass
