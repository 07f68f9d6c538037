"""A run that is killed in the middle of a stage goes on, and gives what it would have given."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from circuitseer_assets.settings import PROJECT_ROOT
from tests.conftest import small_settings, write_settings

NUM_LINES_BEFORE_THE_KILL = 20
POISON_NATS = 1e-3


def start(home: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("circuitseer")), "run"],
        cwd=PROJECT_ROOT,
        env={**os.environ, "CIRCUITSEER_HOME": str(home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def count_lines(home: Path) -> int:
    journals = list(home.glob("work/head_ranking-*/journal.jsonl"))
    return len(journals[0].read_bytes().splitlines()) if journals else 0


def poison(journal: Path) -> None:
    """Adds a little to what the journal says of head 0.0 on one probe, to be seen in the result."""
    lines = [json.loads(line) for line in journal.read_bytes().splitlines(keepends=True)[:-1]]
    name = next(line["name"] for line in lines if line["name"].endswith(":0"))
    for line in lines:
        if line["name"] == name:
            line["values"][0] += POISON_NATS
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


def importance(home: Path) -> pa.Table:
    [file] = home.glob("artifacts/head_ranking/head_ranking-*/head_importance.parquet")
    return pq.read_table(file).sort_by([("layer", "ascending"), ("head", "ascending")])


@pytest.mark.long
def test_a_killed_ranking_goes_on_from_its_journal(
    first_run: Any, home_folder: Path, tmp_path: Path
) -> None:
    write_settings(tmp_path, small_settings())
    killed = start(tmp_path)
    deadline = time.monotonic() + 120
    while count_lines(tmp_path) < NUM_LINES_BEFORE_THE_KILL and time.monotonic() < deadline:
        assert killed.poll() is None, killed.stdout.read() if killed.stdout else ""
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    [journal] = tmp_path.glob("work/head_ranking-*/journal.jsonl")
    poison(journal)
    assert not list(tmp_path.glob("artifacts/head_ranking/head_ranking-*"))

    resumed = start(tmp_path)
    said, _ = resumed.communicate(timeout=600)
    assert resumed.returncode == 0, said
    assert not list(tmp_path.glob("work/head_ranking-*"))
    expected, got = importance(home_folder), importance(tmp_path)
    assert got.num_rows == expected.num_rows == 48
    for name in ("layer", "head", "num_probes", "is_reasoning_head"):
        assert got[name].to_pylist() == expected[name].to_pylist()
    rises = np.subtract(got["delta_loss_nats"], expected["delta_loss_nats"])
    num_probes = got["num_probes"].to_pylist()
    # Head 0.0 is as the journal says, every other one as it would have been.
    assert rises[0] == pytest.approx(POISON_NATS / num_probes[0], rel=0.01)
    assert rises[1:] == pytest.approx(np.zeros(47), abs=1e-6)
