"""The measurement of millions of rows, on a thousand: every step is done and gives its figures."""

import resource
from pathlib import Path

import pytest

from bench import streaming


def test_the_most_memory_held_is_what_the_kernel_says() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    [kib] = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    # Not less; more where whoever started this process held more.
    assert streaming._largest_gb(resource.RUSAGE_SELF) >= 0.999 * kib * 1024 / 1e9


@pytest.mark.long
def test_the_whole_chain_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CIRCUITSEER_SETTINGS", raising=False)
    run = streaming.measure(1000, tmp_path)
    assert set(run["seconds"]) == set(streaming.STEPS)
    # Of a thousand rows ten are blank and ten repeat another; a probe takes its prompt along.
    assert 1000 - 10 - 10 - 2 * 56 <= run["pool_rows"] <= 1000 - 10 - 10 - 56
    assert 0 < run["model_us_a_row"] < 1000
    slower = {**run, "rows": 5000, "seconds": {s: 6 * t for s, t in run["seconds"].items()}}
    result = streaming.summarise([run, slower])
    assert result["growth_1m_to_5m"] == pytest.approx(6 / 5)
    assert result["rows_per_second"] == pytest.approx(5000 / 6 / sum(run["seconds"].values()))
    assert 0 < result["peak_rss_gb"] < 6
    assert set(result["step_rows_per_second"]) == set(streaming.STEPS)
