"""The audit of dependencies: a known vulnerability fails it, a service out of reach does not."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from circuitseer_assets.settings import PROJECT_ROOT

PROBE = ("pip", "26")  # what is asked to see whether the service is there
LOCK = "".join(
    f"{name}=={version} \\\n    --hash=sha256:{'0' * 64}\n"
    for name, version in (("safe", "1.0"), ("holed", "2.0"))
)
HOLED = {
    "vulns": [
        {
            "id": "OSV-1",
            "aliases": ["CVE-1"],
            "summary": "a hole",
            "affected": [
                {
                    "package": {"name": "holed", "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "2.1"}]}],
                }
            ],
        }
    ]
}


class Osv(ThreadingHTTPServer):
    """A service that speaks OSV's query, and knows one vulnerability."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.status = 200
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1/query"


class Answer(BaseHTTPRequestHandler):
    server: Osv

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["content-length"])))
        name = query["package"]["name"]
        self.server.asked.append((name, query["version"]))
        content = json.dumps(HOLED if name == "holed" else {}).encode()
        self.send_response(self.server.status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


@pytest.fixture
def osv() -> Iterator[Osv]:
    with Osv() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def audit(folder: Path, url: str, lock: str = LOCK) -> tuple[int, str]:
    path = folder / "requirements.lock"
    path.write_text(lock)
    return run(path, url)


def run(lock: Path, url: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, ".ci/audit.py", lock, "--osv-url", url],
        cwd=PROJECT_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.stderr
    return done.returncode, done.stdout


def test_a_known_vulnerability_fails_the_audit_and_says_what_mends_it(
    osv: Osv, tmp_path: Path
) -> None:
    status, said = audit(tmp_path, osv.url)
    assert status == 1
    assert "holed 2.0: CVE-1, OSV-1, mended in 2.1" in said
    assert osv.asked == [PROBE, ("safe", "1.0"), ("holed", "2.0")]


def test_dependencies_without_one_pass(osv: Osv, tmp_path: Path) -> None:
    status, said = audit(tmp_path, osv.url, LOCK[: LOCK.index("holed")])
    assert (status, said) == (
        0,
        "audit: 1 packages of requirements.lock, 0 known vulnerabilities\n",
    )


def test_a_service_out_of_reach_is_told_and_passes(osv: Osv, tmp_path: Path) -> None:
    status, said = audit(tmp_path, "http://127.0.0.1:9/v1/query")
    assert status == 0
    assert "SKIPPED, nothing was looked up: http://127.0.0.1:9/v1/query cannot be" in said
    assert "Connection refused" in said
    osv.status = 503
    status, said = audit(tmp_path, osv.url)
    assert status == 0
    assert "SKIPPED" in said
    assert "it answers 503" in said


def test_an_audit_that_fails_by_itself_does_not_pass(osv: Osv, tmp_path: Path) -> None:
    osv.status = 400
    status, said = audit(tmp_path, osv.url)
    assert status == 1
    assert "FAILED" in said
    osv.status = 200
    status, said = audit(tmp_path, osv.url, "safe==1.0\n")  # without its hash
    assert status == 1
    assert "FAILED" in said


def test_the_lock_itself_is_looked_up_to_its_end(osv: Osv) -> None:
    lock = PROJECT_ROOT / "requirements.lock"
    status, said = run(lock, osv.url)
    assert status == 0, said
    text = lock.read_text()
    here = {
        (canonicalize_name(requirement.name), str(requirement.specifier).removeprefix("=="))
        for requirement in map(Requirement, re.findall(r"^\w.*(?= \\$)", text, re.M))
        if requirement.marker is None or requirement.marker.evaluate()
    }
    assert len(here) > 250
    assert set(osv.asked) - {PROBE} == here
