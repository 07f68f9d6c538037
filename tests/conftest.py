"""Fixtures: small settings, and one whole run of the graph that many tests look at."""

import copy
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

# Set before anything imports the definitions: no test ever touches a real home.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.pop("CIRCUITSEER_SETTINGS", None)

from circuitseer_assets.settings import PROJECT_ROOT

CORPUS_COLUMNS = {"prompt": "prompt", "response": "response"}
SMALL: dict[str, Any] = {
    "corpus": {"source": "word_problems", "num_samples": 200, "seed": 1},
    "decontamination": {"benchmarks": [{"task": "word_problems", "num_problems": 24}]},
    "probe_set": {
        "num_ranking": 6,
        "num_confirmation": 4,
        "num_control": 4,
        "control": {"source": "plain_texts"},
    },
    "training": {
        # Several passes over the small subset, so that the loss surely falls.
        "max_steps": 12,
        "learning_rate": 5.0e-4,
        "batch_size": 8,
        "max_length": 512,
    },
    "evaluation": {"tasks": ["word_problems"], "max_new_tokens": 64, "batch_size": 24},
    # A process imports for longer than this trains; test_training_launch.py starts some.
    "execution": {"training": {"own_process": False}},
}


def small_settings() -> dict[str, Any]:
    """Returns the tiny preset, cut down to what a test can run."""
    values: dict[str, Any] = yaml.safe_load((PROJECT_ROOT / "presets/tiny.yaml").read_text())
    return copy.deepcopy({**values, **SMALL})


@pytest.fixture(autouse=True, scope="module")
def _no_instance_left_behind() -> None:
    """Lets no file of tests load definitions by an instance of Dagster that another had.

    The context of a resource puts back what was in use when it was made, once it is collected:
    that may be long after, and the instance is gone.
    """
    if storage := sys.modules.get("dagster._core.storage.defs_state.base"):
        storage._current_storage.set(None)


@pytest.fixture(scope="session")
def home_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of its own for the whole session, with small settings."""
    folder = tmp_path_factory.mktemp("home")
    write_settings(folder, small_settings())
    before = {name: os.environ.get(name) for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME")}
    os.environ["CIRCUITSEER_HOME"] = str(folder)
    yield folder
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def write_settings(folder: Path, values: dict[str, Any]) -> None:
    """Makes `values` the settings of the home at `folder`."""
    (folder / "settings.yaml").write_text(yaml.safe_dump(values, sort_keys=False))


@pytest.fixture(scope="session")
def run_graph(home_folder: Path) -> Callable[..., Any]:
    """Runs the whole graph in the session's home, after writing changed settings slices."""
    from circuitseer_assets.definitions import make_definitions
    from jobs.run import run_job
    from resources.home import Home

    home = Home.prepared(home_folder)

    def run(**slices: dict[str, Any]) -> Any:
        values = small_settings()
        for name, changes in slices.items():
            values[name] = {**values.get(name, {}), **changes}
        write_settings(home_folder, values)
        return run_job(make_definitions(home), home)

    return run


@pytest.fixture(scope="session")
def first_run(run_graph: Callable[..., Any]) -> Any:
    """The first whole run of the graph, in an empty home."""
    return run_graph()


@pytest.fixture
def tell(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Adds a row to a table that is printed after the last test: the table's name, then cells."""

    def add(table: str, *cells: str) -> None:
        request.node.user_properties.append(("told", [table, *cells]))

    return add


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with long tests first, or one worker would be left with one while others idle."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints what tests told, a table each."""
    tables: dict[str, list[list[str]]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for _name, (table, *cells) in (p for p in report.user_properties if p[0] == "told"):
            tables.setdefault(table, []).append(cells)
    for table, rows in tables.items():
        terminalreporter.write_sep("-", f"{table}: {len(rows)}")
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
        for *cells, last in rows:
            padded = (f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
            terminalreporter.write_line("  ".join([*padded, last]))


class Reconciled:
    """A home of small settings, and its reconciliation after a change; without the dbt models."""

    def __init__(self, folder: Path) -> None:
        import dagster as dg

        from circuitseer_assets import checks, definitions
        from circuitseer_assets.assets import slices
        from circuitseer_assets.settings import AutomationSettings
        from jobs.automation import automated
        from jobs.full_pipeline import full_pipeline
        from jobs.reconcile import reconcile
        from resources.home import Home

        self.home = Home.prepared(folder)
        stages = dg.load_assets_from_modules(definitions._STAGES)
        self.defs = dg.Definitions(
            assets=[
                *dg.load_assets_from_modules([slices]),
                *automated(stages, AutomationSettings()),
            ],
            asset_checks=dg.load_asset_checks_from_modules([checks]),
            jobs=[full_pipeline],
            resources={"home": self.home},
            executor=dg.in_process_executor,
        )
        self._reconcile = reconcile
        self.first = self.change()

    def change(self, **changes: dict[str, Any]) -> Any:
        """Returns the reconciliation with the small settings, some of their slices changed."""
        self.write(**changes)
        return self._reconcile(self.defs, self.home)

    def write(self, **changes: dict[str, Any]) -> None:
        """Makes the small settings, some of their slices changed, those in use."""
        values = small_settings()
        for name, slice_ in changes.items():
            replaced = {} if name == "base_model" else values.get(name, {})
            values[name] = {**replaced, **slice_}
        write_settings(self.home.folder, values)


@pytest.fixture(scope="session")
def session_reconciled(tmp_path_factory: pytest.TempPathFactory) -> Reconciled:
    """A home made once by a reconciliation; `reconciled` is how tests use it."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
            patch.setenv(name, os.environ.get(name, ""))  # to be put back
        return Reconciled(tmp_path_factory.mktemp("reconciled"))


@pytest.fixture(scope="module")
def reconciled(session_reconciled: Reconciled) -> Iterator[Reconciled]:
    """A reconciled home that processes started by a test, and Dagster itself, take for theirs."""
    folder = session_reconciled.home.folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CIRCUITSEER_HOME", str(folder))
        patch.setenv("DAGSTER_HOME", str(folder / "dagster"))
        yield session_reconciled


class Corpus:
    """A folder of JSONL files in a home of its own, and the job `curate` on it."""

    def __init__(self, folder: Path) -> None:
        import dagster as dg

        from circuitseer_assets import checks, definitions
        from circuitseer_assets.assets import slices
        from jobs.full_pipeline import curate
        from jobs.run import run_job
        from resources.home import Home

        self.folder = folder / "corpus"
        self.folder.mkdir()
        self.home = Home.prepared(folder / "home")
        self.tokenised: list[str] = []
        self.scored: list[str] = []
        self.rankings = 0
        self.configure()
        self.defs = dg.Definitions(
            assets=dg.load_assets_from_modules([slices, *definitions._STAGES]),
            asset_checks=dg.load_asset_checks_from_modules([checks]),
            jobs=[curate],
            resources={"home": self.home},
            executor=dg.in_process_executor,
        )
        self._run_job = run_job

    def configure(self, **slices: dict[str, Any]) -> None:
        """Makes the small settings with the folder's files, and then these slices, those in use."""
        paths = [str(self.folder / "*.jsonl")]
        # One problem to be like: what is new in the corpus is then new in the pool.
        benchmarks = [{"task": "word_problems", "num_problems": 1}]
        values = {
            **small_settings(),
            "corpus": {"source": "files", "paths": paths, "columns": CORPUS_COLUMNS},
            "decontamination": {"benchmarks": benchmarks},
            **slices,
        }
        write_settings(self.home.folder, values)

    def write(self, name: str, rows: list[dict[str, str]]) -> None:
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def curate(self) -> Any:
        self.tokenised, self.scored, self.rankings = [], [], 0
        return self._run_job(self.defs, self.home, "curate")

    def version(self, run: Any, asset: str) -> str:
        artifact = self.home.warehouse.find_artifact(run.of(asset, "artifact_id"))
        assert artifact is not None
        return artifact.data_version

    def ids(self, sql: str, **params: str) -> set[str]:
        return set(self.home.warehouse.query(sql, params)["sample_id"].to_pylist())

    def members(self, run: Any) -> set[str]:
        sql = "select sample_id from subset_members where subset_id = $id"
        return self.ids(sql, id=run.of("subset", "artifact_id"))

    def without(self, sample_id: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
        """The rows of the one file there is, but for one sample's."""
        sql = "select position from samples where sample_id = $id"
        [position] = self.home.warehouse.query(sql, {"id": sample_id})["position"].to_pylist()
        return rows[:position] + rows[position + 1 :]

    def corpus_ids(self, run: Any) -> set[str]:
        sql = "select sample_id from corpus_members where corpus_id = $id"
        return self.ids(sql, id=run.of("corpus", "artifact_id"))

    def scores(self) -> set[str]:
        return self.ids("select sample_id from sample_scores")

    def probes(self, run: Any) -> set[str]:
        sql = "select sample_id from probe_members where probe_set_id = $id and kind != 'control'"
        return self.ids(sql, id=run.of("probe_set", "artifact_id"))


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """Files in a home of their own; what is ranked, tokenised and scored there is counted."""
    from circuitseer_assets.method import head_ranking, sample_scores
    from resources.language_model import LanguageModel

    for name in ("CIRCUITSEER_HOME", "DAGSTER_HOME"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # to be put back
    made = Corpus(tmp_path)
    rank_heads, score_samples = head_ranking.rank_heads, sample_scores.score_samples
    tokenize = LanguageModel.tokenize

    def count_ranking(*args: Any, **kwargs: Any) -> Any:
        made.rankings += 1
        return rank_heads(*args, **kwargs)

    def count_scores(*args: Any, **kwargs: Any) -> Iterator[Any]:
        for result in score_samples(*args, **kwargs):
            made.scored.append(result.sample_id)
            yield result

    def count_tokens(self: Any, sample_id: str, *args: Any, **kwargs: Any) -> Any:
        made.tokenised.append(sample_id)
        return tokenize(self, sample_id, *args, **kwargs)

    monkeypatch.setattr(head_ranking, "rank_heads", count_ranking)
    monkeypatch.setattr(sample_scores, "score_samples", count_scores)
    monkeypatch.setattr(LanguageModel, "tokenize", count_tokens)
    return made


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with slightly different weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("other_model")
    source = PROJECT_ROOT / "models/tiny"
    model = AutoModelForCausalLM.from_pretrained(source)
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data *= 1 + 0.01 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    return folder
