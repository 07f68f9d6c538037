"""Times the draw of 1 M of 10 M scores, weights included, and its peak memory.

    python -m bench.sampling

The scores are a Parquet file, as the asset reads them. The draw runs in a process of its own, so
that its peak memory is nobody else's.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from bench.measure import log, print_result, start_logging

_SCORES = """
copy (
    select
        md5(i::varchar) as sample_id,
        0.001 * exp(0.5 * sqrt(-2 * ln(random() + 1e-12)) * cos(2 * pi() * random())) as score,
        (50 + 400 * random())::bigint as num_tokens,
        (50 + 200 * random())::bigint as num_prompt_tokens,
        (50 + 200 * random())::bigint as num_scored_tokens
    from range($num_samples) as t (i)
) to '{path}' (format parquet)
"""


def main() -> None:
    """Measures the draw and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--drawn", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    start_logging()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scores.parquet"
        duckdb.connect().execute(_SCORES.format(path=path), {"num_samples": arguments.samples})
        log.info("wrote %d scores", arguments.samples)
        runs = [_draw_apart(path, arguments.drawn) for _ in range(arguments.repeats)]
    result = {
        "draw_seconds": statistics.median(run["seconds"] for run in runs),
        "peak_rss_gb": max(run["peak_rss_gb"] for run in runs),
        "samples": arguments.samples,
        "drawn": arguments.drawn,
        "runs": runs,
    }
    print_result(result, started=started, libraries=("duckdb", "pyarrow", "numpy"))


def _draw_apart(path: Path, drawn: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_draw, args=(path, drawn, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = json.loads(receiver.recv())
    finally:
        process.join()
    log.info("%s", result)
    return result


def _draw(path: Path, drawn: int, sender: Any) -> None:
    from circuitseer_assets.method.weights import weigh_samples
    from circuitseer_assets.settings import Budget, SelectionSettings
    from resources.draw import draw_subset

    settings = SelectionSettings(budget=Budget(samples=drawn))
    started = time.perf_counter()
    members = draw_subset(weigh_samples(pq.read_table(path), settings), settings)
    seconds = time.perf_counter() - started
    if members.num_rows != drawn:
        raise RuntimeError(f"the draw must give {drawn} samples, got {members.num_rows}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    sender.send(json.dumps({"seconds": seconds, "peak_rss_gb": peak}))


if __name__ == "__main__":
    main()
