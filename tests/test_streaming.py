"""The measurement of millions of rows, on a thousand: every step is done and gives its figures."""

from pathlib import Path

import pytest

from bench import streaming

pytestmark = pytest.mark.long


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
