"""Runs every measurement with a bar, one after the other, and writes bench/RESULTS.md.

python -m bench.run_all
"""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REPORT = Path(__file__).with_name("RESULTS.md")
RESULTS = Path(__file__).with_name("results")
_RECURATION = {
    "budget_change_forwards": ("<=", 0),
    "budget_change_share": ("<=", 0.05),
    "one_percent_rows_scored_amiss": ("<=", 0),
    "one_percent_scoring_share": ("<=", 0.03),
    "one_percent_displaced_share": ("<=", 0.02),
}
# Each program with the figures it is judged by: at least, or at most, so much.
PROGRAMS: Mapping[tuple[str, ...], Mapping[str, tuple[str, float]]] = {
    ("bench.head_ranking", "--model", "smollm2"): {
        "speedup_vs_hf": (">=", 4),
        "speedup_vs_transformer_lens": (">=", 4),
        "top_missed": ("<=", 1),
        "max_abs_error_nats": ("<=", 1e-4),
    },
    ("bench.head_ranking", "--model", "tiny"): {
        "speedup_vs_hf": (">=", 7),
        "speedup_vs_transformer_lens": (">=", 7),
        "replay_same_set_rate": (">=", 0.95),
        "max_abs_error_nats": ("<=", 1e-4),
    },
    ("bench.scoring", "--model", "smollm2"): {
        "speedup_vs_output_attentions_2048": (">=", 5),
        "throughput_vs_plain_forward": (">=", 1.2),
        "max_rel_error": ("<=", 1e-5),
        "peak_memory_vs_plain": ("<=", 1.3),
        "memory_growth_2048_to_8192": ("<=", 4),
    },
    ("bench.decontamination",): {
        "min_caught_share": (">=", 0.98),
        "caught_share_other_number_format": (">=", 0.98),
        "removed_share": ("<=", 0.06),
    },
    ("bench.sampling",): {"draw_seconds": ("<=", 40), "peak_rss_gb": ("<=", 4)},
    ("bench.recuration", "--model", "tiny"): _RECURATION,
    ("bench.recuration", "--model", "smollm2"): _RECURATION,
    ("bench.streaming",): {"growth_1m_to_5m": ("<=", 1.1), "peak_rss_gb": ("<=", 6)},
    ("bench.scaling",): {
        "exponent_samples": ("<=", 1.1),
        "exponent_tokens": ("<=", 2),
        "exponent_heads": ("<=", 1),
    },
}


def main() -> None:
    """Runs the programs named, or all, and writes the report; ends with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="parts of programs' names; all if left out")
    names = parser.parse_args().names
    for program in PROGRAMS:
        if not names or any(name in name_of(program) for name in names):
            run(program)
    results = {
        program: json.loads(path_of(program).read_text())
        for program in PROGRAMS
        if path_of(program).exists()
    }
    REPORT.write_text(format_report(results))
    missed = [
        f"{key} of {' '.join(program)}"
        for program, result in results.items()
        for key, bar in PROGRAMS[program].items()
        if not holds(result[key], bar)
    ]
    missed += [f"all of {' '.join(program)}" for program in PROGRAMS if program not in results]
    print(f"wrote {REPORT}; " + (f"missed: {', '.join(missed)}" if missed else "all bars hold"))
    sys.exit(bool(missed))


def run(program: Sequence[str]) -> None:
    """Runs one program and keeps what it printed last."""
    command = [sys.executable, "-m", *program]
    print("running", *program, file=sys.stderr)
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result = {"date": datetime.date.today().isoformat(), **json.loads(printed.splitlines()[-1])}
    RESULTS.mkdir(exist_ok=True)
    path_of(program).write_text(json.dumps(result, indent=1) + "\n")


def name_of(program: Sequence[str]) -> str:
    """Returns a short name of the program and its model."""
    return "-".join([program[0].removeprefix("bench."), *program[2:]])


def path_of(program: Sequence[str]) -> Path:
    """Returns where the program's latest result lies."""
    return RESULTS / f"{name_of(program)}.json"


def holds(value: float, bar: tuple[str, float]) -> bool:
    """Returns whether `value` meets the bar."""
    relation, bound = bar
    return value >= bound if relation == ">=" else value <= bound


def format_report(results: Mapping[tuple[str, ...], Mapping[str, Any]]) -> str:
    """Returns the report: one table of figures against bars, then each program's whole output."""
    lines = [
        "# What the measurements gave",
        "",
        "Written by `make bench`. Where two ways are compared, both were timed in one run, turn",
        "about, and the medians are given. What else is measured stands at a program's head.",
        "",
        "| program | figure | measured | bar | |",
        "|---|---|---|---|---|",
    ]
    for program, result in results.items():
        for key, bar in PROGRAMS[program].items():
            met = "met" if holds(result[key], bar) else "**missed**"
            lines.append(
                f"| `{' '.join(program)}` | {key} | {result[key]:.4g} | {bar[0]} {bar[1]:g} | "
                f"{met} |"
            )
    for program, result in results.items():
        machine, versions = result["machine"], result["versions"]
        shown = {k: v for k, v in result.items() if k not in ("date", "machine", "versions")}
        lines += [
            "",
            f"## python -m {' '.join(program)}",
            "",
            f"{result['date']}, {machine['cpu']}, {machine['cores']} cores, {machine['system']};",
            ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
            "",
            "```json",
            json.dumps(_rounded(shown), indent=1),
            "```",
        ]
    return "\n".join(lines) + "\n"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return value


if __name__ == "__main__":
    main()
