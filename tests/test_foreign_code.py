"""No foreign code runs: no pickle is loaded, and no Python of a model or a data set.

Each kind of it is planted where it would be found, and writes a file when it runs. It is also let
run where nothing guards against it: a file that cannot appear would prove nothing.
"""

import ast
import contextlib
import importlib.util
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from circuitseer_assets.errors import CorpusError, ModelError
from circuitseer_assets.method.checkpoint import fine_tune
from circuitseer_assets.method.word_problems import generate_problems
from circuitseer_assets.records import Message, Sample
from circuitseer_assets.settings import (
    PROJECT_ROOT,
    Columns,
    HubCorpus,
    LocalModel,
    TrainingPlacement,
    TrainingSettings,
)
from resources.corpora import read_rows
from resources.language_model import load_language_model
from resources.model_faults import find_model_faults
from tests.bad_inputs import change_json

TINY = PROJECT_ROOT / "models/tiny"

# what the source says -----------------------------------------------------------------------------

PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
RUNS_CODE = {"eval", "exec", "compile", "__import__"}
LOADS_PICKLES = {"torch.load", "pd.read_pickle", "pandas.read_pickle", "pickle.load", "os.system"}
LOADS_MODELS = {"AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"}
# What a rule would forbid, and why it is right: path, then the call.
ALLOWED = {
    # To catch what PyTorch's own guard refuses a trainer checkpoint with; nothing is loaded by it.
    ("circuitseer_assets/method/checkpoint.py", "from pickle import UnpicklingError"),
    # With a loader of our own, that builds plain values alone.
    ("circuitseer_assets/yaml_file.py", "yaml.load(path.read_text(encoding='utf-8'), _Loader)"),
}


def breaches(source: str) -> Iterator[str]:
    """Yields what in a program's text loads pickles, or may run code that is not its own."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = node.module if isinstance(node, ast.ImportFrom) else None
            names = [module or ""] if module else [alias.name for alias in node.names]
            if any(name.partition(".")[0] in PICKLES for name in names):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and _is_breach(node):
            yield ast.unparse(node)


def _is_breach(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if name in RUNS_CODE | LOADS_PICKLES or name in ("yaml.load", "yaml.unsafe_load"):
        return True
    if given.get("allow_pickle", "False") != "False" or given.get("shell", "False") != "False":
        return True
    if name.endswith(".from_pretrained") and name.partition(".")[0] in LOADS_MODELS:
        # Left out, transformers asks at the terminal whether to run what it has downloaded.
        return given.get("trust_remote_code") != "False"
    return given.get("trust_remote_code", "False") != "False"


def test_the_source_loads_no_pickle_and_runs_no_code_but_its_own() -> None:
    found = {
        (path.relative_to(PROJECT_ROOT).as_posix(), breach)
        for package in ("circuitseer_assets", "resources", "jobs", "bench")
        for path in sorted((PROJECT_ROOT / package).rglob("*.py"))
        for breach in breaches(path.read_text(encoding="utf-8"))
    }
    assert found == ALLOWED


@pytest.mark.parametrize(
    "breach",
    [
        "import pickle",
        "from joblib import load",
        "import a, cloudpickle.b",
        "torch.load('x', weights_only=True)",
        "np.load('x', allow_pickle=True)",
        "AutoTokenizer.from_pretrained('x')",
        "AutoModelForCausalLM.from_pretrained('x', trust_remote_code=trusted)",
        "HFLM('x', trust_remote_code=True)",
        "subprocess.run('x', shell=True)",
        "yaml.load('x', yaml.Loader)",
        "eval('x')",
    ],
)
def test_a_breach_would_be_seen(breach: str) -> None:
    assert list(breaches(f"def f():\n    {breach}\n")) == [breach]


# what happens -------------------------------------------------------------------------------------


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """The file that foreign code writes; it must not be there in the end."""
    path = tmp_path / "foreign code has run"
    pickle.loads(pickle.dumps(Bomb(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


def pickled(canary: Path, path: Path) -> None:
    """Writes a pickle as a program would that does not use PyTorch."""
    path.write_bytes(pickle.dumps(Bomb(canary)))


def zipped(canary: Path, path: Path) -> None:
    """Writes the pickle in PyTorch's own form."""
    torch.save({"state": Bomb(canary)}, path)


@pytest.mark.parametrize("plant", [pickled, zipped])
def test_pickled_weights_are_refused(
    canary: Path, tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    (folder / "model.safetensors").unlink()
    plant(canary, folder / "pytorch_model.bin")
    settings = LocalModel(source="local", path=str(folder))
    with pytest.raises(ModelError, match="pickled weights can run code and are refused"):
        load_language_model(settings, cache=tmp_path)
    assert find_model_faults(folder)[0].startswith("the model does not load")


def test_pickled_weights_beside_others_are_left_alone(canary: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        pickled(canary, folder / name)
    load_language_model(LocalModel(source="local", path=str(folder)), cache=tmp_path)
    assert find_model_faults(folder) == []


CODE = """
from pathlib import Path
from transformers import LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerFast
Path({canary!r}).touch()
class Config(PretrainedConfig): model_type = "own"
class Model(LlamaForCausalLM): config_class = Config
class Tokenizer(PreTrainedTokenizerFast): pass
"""
AUTO_MAP = {
    "config.json": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"},
    "tokenizer_config.json": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]},
}


@pytest.mark.parametrize("names", [["config.json"], ["tokenizer_config.json"], [*AUTO_MAP]])
@pytest.mark.parametrize("is_known", [True, False])
def test_a_models_own_code_does_not_run(
    canary: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    is_known: bool,
) -> None:
    """Whether or not transformers knows the kind of model; and it does not ask at the terminal."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = tmp_path / "model"
    shutil.copytree(TINY, folder)
    (folder / "own.py").write_text(CODE.format(canary=str(canary)))
    for name in names:
        change_json(name, auto_map=AUTO_MAP[name])(folder)
    if not is_known:
        change_json("config.json", model_type="own")(folder)
        change_json("tokenizer_config.json", tokenizer_class="Tokenizer")(folder)
    settings = LocalModel(source="local", path=str(folder))
    refused = pytest.raises(ModelError, match="cannot be loaded")
    with contextlib.nullcontext() if is_known else refused:
        load_language_model(settings, cache=tmp_path)
    faults = find_model_faults(folder)
    assert is_known or faults
    spec = importlib.util.spec_from_file_location("own", folder / "own.py")
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert canary.exists()  # had anything imported it
    canary.unlink()


@pytest.mark.parametrize("name", ["problems.py", "train.pkl"])
def test_a_data_sets_own_code_does_not_run(
    canary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "1" * 40
    snapshot = tmp_path / "hub/datasets--someone--problems/snapshots" / revision
    snapshot.mkdir(parents=True)
    if name.endswith(".py"):
        (snapshot / name).write_text(f"from pathlib import Path\nPath({str(canary)!r}).touch()\n")
    else:
        pickled(canary, snapshot / name)
    settings = HubCorpus(
        source="hub",
        repo_id="someone/problems",
        revision=revision,
        columns=Columns(prompt="question", response="answer"),
    )
    with pytest.raises(CorpusError, match="must name a data set that can be read"):
        list(read_rows(settings))


class Killed(BaseException):
    """Stands in for a kill: nothing may catch it."""


def train(folder: Path, report: Callable[[int, Mapping[str, float]], None]) -> None:
    base_model = load_language_model(LocalModel(source="local", path=str(TINY)), cache=folder)
    fine_tune(
        base_model.model,
        base_model.tokenizer,
        [
            Sample(f"s{i}", f"p{i}", "test", i, (Message("user", p.prompt),), p.response)
            for i, p in enumerate(generate_problems(4, seed=5, split="train"))
        ],
        TrainingSettings(batch_size=2, max_steps=3, max_length=512, save_interval_steps=1),
        TrainingPlacement(),
        output_dir=folder,
        prompt_template=None,
        report=report,
    )


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was killed after its second step."""

    def kill(step: int, _: Mapping[str, float]) -> None:
        if step == 3:
            raise Killed

    folder = tmp_path_factory.mktemp("interrupted")
    with pytest.raises(Killed):
        train(folder, kill)
    return folder


@pytest.mark.parametrize("plant", [pickled, zipped])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "weights"])
def test_a_training_does_not_go_on_from_a_pickle_that_runs_code(
    canary: Path,
    tmp_path: Path,
    interrupted: Path,
    plant: Callable[[Path, Path], None],
    name: str,
) -> None:
    folder = tmp_path / "work"
    shutil.copytree(interrupted, folder)
    last = folder / "trainer/checkpoint-2"
    if name == "weights":
        (last / "model.safetensors").unlink()
        name = "pytorch_model.bin"
    else:
        assert (last / name).is_file()
    plant(canary, last / name)
    with pytest.raises(ModelError, match=r"hold tensors and numbers alone, .*remove that folder"):
        train(folder, lambda step, metrics: None)


def test_a_training_goes_on_beside_a_pickle_that_nothing_needs(
    canary: Path, tmp_path: Path, interrupted: Path
) -> None:
    folder, steps = tmp_path / "work", []
    shutil.copytree(interrupted, folder)
    pickled(canary, folder / "trainer/checkpoint-2/training_args.bin")
    train(folder, lambda step, metrics: steps.append(step))
    assert steps == [3]
    assert load_file(folder / "model/model.safetensors")
    assert "own" not in sys.modules
