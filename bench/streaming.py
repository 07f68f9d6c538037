"""Times a corpus of millions of rows from its files to the marts, and takes the peak memory.

    python -m bench.streaming --rows 1000000 5000000

Every stage is the project's own, in a home of its own and a process of its own for each size. The
model alone is a stand-in that computes nothing and takes every word for a token: `scoring` is what
a score costs besides the model, and the stand-in's share of it is told. `ingest` is all that is
written to the warehouse, and is part of no other step. A step's growth is its time at the largest
size over its time at the smallest, by the rows: 1 is linear. Where others use the machine, the
growth of the processors' time says more.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg
import duckdb
import yaml

from bench.measure import log, print_result, start_logging
from circuitseer_assets.records import Artifact, Message, TokenizedText
from circuitseer_assets.settings import PROJECT_ROOT
from resources.home import Home
from resources.language_model import LanguageModel, load_language_model
from resources.warehouse import Warehouse

STEPS = ("corpus", "pool", "scoring", "draw", "marts", "ingest")
# Of a hundred rows one repeats another, ten have another's prompt, and one has no response.
_ROWS = """
copy (
    with numbered as (
        select
            i,
            i % 100 = 50 as is_blank,
            i - (i % 100 = 99)::int as text_number,
            text_number - (text_number % 10 = 5)::int as prompt_number
        from range($num_rows) as t (i)
    )
    select
        format(
            'On day {{}} a shop gets {{}} crates of {{}} cups.{{}} How many cups does it have?',
            prompt_number, 2 + prompt_number % 89, 3 + prompt_number % 97,
            repeat(' Some of them break on the way.', (hash(prompt_number) % 8)::int)
        ) as prompt,
        case when is_blank then '' else format(
            'It has {{}} times {{}} cups.{{}}\n#### {{}}',
            2 + text_number % 89, 3 + text_number % 97,
            repeat(' These have to be counted with care.', (hash(text_number) % 6)::int),
            text_number
        ) end as response
    from numbered
) to '{path}' (format parquet, row_group_size 65536)
"""
_BUDGET = 0.1


class WordModel(LanguageModel):
    """A language model that takes every word for a token: as cheap as reading can be."""

    def tokenize(
        self, sample_id: str, messages: Sequence[Message], response: str | None = None
    ) -> TokenizedText:
        """Returns one token for every word of the chat, all of them the same."""
        num_prompt = sum(len(turn.content.split()) for turn in messages)
        num_response = len(response.split()) if response else 0
        ids = (0,) * (num_prompt + num_response)
        return TokenizedText(sample_id, ids, (0, num_prompt), num_prompt)


def main() -> None:
    """Measures every size and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    sizes = sorted(parser.parse_args().rows)
    start_logging()
    started = time.perf_counter()
    runs = [_measure_apart(num_rows) for num_rows in sizes]
    print_result(
        summarise(runs), started=started, libraries=("duckdb", "pyarrow", "dagster", "dbt-core")
    )


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the rates at the largest size, and how times grew from the smallest to it."""
    smallest, largest = runs[0], runs[-1]
    growth = _growth(smallest, largest, "seconds")
    return {
        "rows": [run["rows"] for run in runs],
        "rows_per_second": largest["rows"] / sum(largest["seconds"].values()),
        "growth_1m_to_5m": max(growth.values()),
        "peak_rss_gb": max(run["peak_rss_gb"] for run in runs),
        "step_rows_per_second": {s: largest["rows"] / largest["seconds"][s] for s in STEPS},
        "step_growth_1m_to_5m": growth,
        "step_cpu_growth_1m_to_5m": _growth(smallest, largest, "cpu_seconds"),
        "runs": list(runs),
    }


def _growth(
    smallest: Mapping[str, Any], largest: Mapping[str, Any], clock: str
) -> dict[str, float]:
    ratio = largest["rows"] / smallest["rows"]
    return {s: largest[clock][s] / (ratio * smallest[clock][s]) for s in STEPS}


def _measure_apart(num_rows: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure_and_send, args=(num_rows, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = json.loads(receiver.recv())
    finally:
        process.join()
    return result


def _measure_and_send(num_rows: int, sender: Any) -> None:
    start_logging()
    with tempfile.TemporaryDirectory() as folder:
        sender.send(json.dumps(measure(num_rows, Path(folder))))


def measure(num_rows: int, folder: Path) -> dict[str, Any]:
    """Returns the seconds of each step, and the memory this process and dbt took at most."""
    _import_everything()
    from circuitseer_assets.assets import pool_scorer
    from circuitseer_assets.assets.corpus import make_corpus
    from circuitseer_assets.assets.probe_set import make_probe_set_and_pool
    from circuitseer_assets.assets.sample_scores import make_sample_scores
    from circuitseer_assets.assets.stage import StageRun
    from circuitseer_assets.assets.subset import make_subset

    rows = folder / "rows.parquet"
    duckdb.connect().execute(_ROWS.format(path=rows), {"num_rows": num_rows})
    home = _prepare_home(folder / "home", rows)
    made: dict[str, Artifact] = {}
    run = StageRun(home, home.settings(), made.__getitem__, "a-run")
    watch = Watch(num_rows)
    with watch.watching(), mock.patch.object(pool_scorer, "load_language_model", load_words):
        with watch.step("corpus"):
            made["corpus"] = make_corpus(run).artifact
        with watch.step("pool"):
            probes, pool = make_probe_set_and_pool(run)
        made |= {"probe_set": probes.artifact, "pool": pool.artifact}
        made["head_ranking"] = _plant_ranking(run, probes.artifact)
        with watch.step("scoring"):
            made["sample_scores"] = make_sample_scores(run).artifact
        with watch.step("draw"):
            made["subset"] = make_subset(run).artifact
    with watch.step("marts"):
        _build_marts(home)
    largest, resident = _largest_gb(resource.RUSAGE_SELF), _resident_gb()
    return {
        "rows": num_rows,
        "pool_rows": pool.summary["num_samples"],
        "seconds": dict(watch.seconds),
        "cpu_seconds": dict(watch.cpu_seconds),
        # dbt is a process of its own, and runs while this one holds what it holds now.
        "peak_rss_gb": max(largest, resident + _largest_gb(resource.RUSAGE_CHILDREN)),
        "peak_rss_gb_after": watch.peaks,
        "model_us_a_row": _model_cost_us(run),
        "data_versions": {name: artifact.data_version for name, artifact in made.items()},
    }


class Watch:
    """What each step took, by the clock and of the processors; writing is in none but its own."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows
        self.seconds: Counter[str] = Counter()
        self.cpu_seconds: Counter[str] = Counter()
        self.peaks: dict[str, float] = {}

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Returns a context whose time is this step's."""
        written = [counter["ingest"] for counter in (self.seconds, self.cpu_seconds)]
        with self._spending(name):
            yield
        for counter, before in zip((self.seconds, self.cpu_seconds), written, strict=True):
            counter[name] -= counter["ingest"] - before
        self.peaks[name] = _largest_gb(resource.RUSAGE_SELF)
        took_s, peak_gb = self.seconds[name], self.peaks[name]
        log.info("%d rows, %s: %.1f s, %.2f GB", self.num_rows, name, took_s, peak_gb)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Returns a context in which what is written to the warehouse is timed."""
        with contextlib.ExitStack() as stack:
            for name in ("record", "append_scores", "append_lengths"):
                timed = self._timed(getattr(Warehouse, name))
                stack.enter_context(mock.patch.object(Warehouse, name, timed))
            yield

    def _timed(self, write: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._spending("ingest"):
                return write(*args, **kwargs)

        return timed

    @contextlib.contextmanager
    def _spending(self, name: str) -> Iterator[None]:
        started_s, cpu_s = time.perf_counter(), _cpu_seconds()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - started_s
            self.cpu_seconds[name] += _cpu_seconds() - cpu_s


def _cpu_seconds() -> float:
    """Returns what this process and those it has waited for have had of the processors."""
    return sum(os.times()[:4])


def _import_everything() -> None:
    import matplotlib.pyplot  # noqa: F401
    import scipy.stats  # noqa: F401

    from circuitseer_assets.assets import dbt_models  # noqa: F401
    from circuitseer_assets.method import forwards, reader, sample_scores  # noqa: F401


def load_words(*args: Any, **kwargs: Any) -> LanguageModel:
    """Returns the base model, reading by words."""
    return WordModel(**vars(load_language_model(*args, **kwargs)))


def _prepare_home(folder: Path, rows: Path) -> Home:
    values = yaml.safe_load((PROJECT_ROOT / "presets/tiny.yaml").read_text())
    columns = {"prompt": "prompt", "response": "response"}
    values["corpus"] = {"source": "files", "paths": [str(rows)], "columns": columns}
    values["scoring"] = {"scorer": "shortness"}
    values["selection"] = {"budget": {"fraction": _BUDGET}}
    home = Home.prepared(folder)
    (folder / "settings.yaml").write_text(yaml.safe_dump(values))
    os.environ.pop("CIRCUITSEER_SETTINGS", None)
    return home


def _plant_ranking(run: Any, probes: Artifact) -> Artifact:
    """Returns a ranking without evidence: the scorer reads no heads, but is of a ranking."""
    from circuitseer_assets.assets.stage import Made

    def plant(folder: Path) -> Made:
        head = {"head": {"layer": 0, "head": 0}, "is_reasoning_head": True}
        stored = {"importance": [head], "num_layers": 1, "num_heads": 1}
        (folder / "head_ranking.json").write_text(json.dumps(stored))
        return Made(data=["head_ranking.json"])

    planted = run.reuse_or_make("head_ranking", {}, [probes], plant, code_version="planted")
    artifact: Artifact = planted.artifact
    return artifact


def _build_marts(home: Home) -> None:
    from circuitseer_assets.assets.dbt_models import dbt_models, dbt_resource

    with dg.DagsterInstance.ephemeral() as instance:
        resources = {"dbt": dbt_resource(), "home": home}
        with contextlib.redirect_stdout(sys.stderr):
            dg.materialize([dbt_models], instance=instance, resources=resources)


def _model_cost_us(run: Any) -> float:
    """Returns the microseconds that the stand-in takes of a row: its length and its score."""
    model = load_words(run.settings.base_model, cache=run.home.models)
    chat = [Message("user", "On day 1 a shop gets 3 crates of 4 cups. How many does it have?")]
    repeats = 10_000
    started = time.perf_counter()
    for _ in range(repeats):
        model.tokenize("a-sample", chat, "It has 3 times 4 cups.\n#### 12")
        model.tokenize("a-sample", chat)
    return 1e6 * (time.perf_counter() - started) / repeats


def _largest_gb(of: int) -> float:
    """Returns the most memory that this process, or any one it started, has held so far."""
    return resource.getrusage(of).ru_maxrss * 1024 / 1e9


def _resident_gb() -> float:
    """Returns the memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


if __name__ == "__main__":
    main()
