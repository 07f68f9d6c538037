"""Fits how the cost of scoring grows with the number of samples, of tokens and of heads.

    python -m bench.scaling

The exponent b of seconds = a * n^b, by least squares on the logarithms of the medians: 1 is linear.
The heads always reach to the same layer, so that only their number changes.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from bench.measure import log, print_result, start_logging, time_sides
from bench.models import MODELS, load_model
from bench.scoring import make_texts, score
from circuitseer_assets.records import HeadId

SAMPLES = (2, 4, 8, 16)
TOKENS = (256, 512, 1024, 2048, 4096)
HEADS = (8, 16, 32, 64)
TOKENS_A_SAMPLE = 256


def main() -> None:
    """Measures one model and prints the exponents."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="smollm2")
    parser.add_argument("--repeats", type=int, default=3, help="timings of each size")
    arguments = parser.parse_args()
    start_logging()
    started = time.perf_counter()
    model = load_model(arguments.model)
    config = model.model.config.get_text_config()
    everyone = [
        HeadId(layer, head)
        for layer in range(config.num_hidden_layers * 2 // 3)
        for head in range(config.num_attention_heads)
    ]
    texts = {length: make_texts(arguments.model, model, length) for length in TOKENS}
    few = spread(everyone, HEADS[0])
    score(model, few, texts[TOKENS_A_SAMPLE][:1])  # warm up
    seconds = {
        "samples": time_sizes(
            {n: lambda n=n: score(model, few, texts[TOKENS_A_SAMPLE][:n]) for n in SAMPLES},
            arguments.repeats,
        ),
        "tokens": time_sizes(
            {n: lambda n=n: score(model, few, texts[n][:1]) for n in TOKENS}, arguments.repeats
        ),
        "heads": time_sizes(
            {n: lambda n=n: score(model, spread(everyone, n), texts[512][:2]) for n in HEADS},
            arguments.repeats,
        ),
    }
    exponents = {f"exponent_{name}": fit_exponent(sizes) for name, sizes in seconds.items()}
    log.info("%s", exponents)
    print_result(
        {"model": arguments.model, **exponents, "seconds_by_size": seconds}, started=started
    )


def spread(heads: Sequence[HeadId], count: int) -> list[HeadId]:
    """Returns `count` of the heads at even distances, the last one always among them."""
    return [heads[i] for i in np.linspace(len(heads) - 1, 0, count).round().astype(int)]


def time_sizes(sides: Mapping[int, Callable[[], object]], repeats: int) -> dict[int, float]:
    """Returns the median seconds of each size."""
    named = {str(size): side for size, side in sides.items()}
    seconds = time_sides(named, repeats=repeats)
    return {int(size): statistics.median(taken) for size, taken in seconds.items()}


def fit_exponent(seconds: Mapping[int, float]) -> float:
    """Returns the slope of log seconds over log size."""
    sizes, taken = zip(*seconds.items(), strict=True)
    slope, _ = np.polyfit(np.log(sizes), np.log(taken), 1)
    return float(slope)


if __name__ == "__main__":
    main()
