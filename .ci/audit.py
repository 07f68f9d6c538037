"""Looks every locked dependency up among the known vulnerabilities, with pip-audit at OSV.

Exit status: 0 none is known, or the service cannot be reached, which is said; 1 one is known, or
the audit itself failed.
"""

import argparse
import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

OSV = "https://api.osv.dev/v1/query"
TIMEOUT_S = 15
# What an answer means that is not the service's own: a proxy's refusal, or too much to do.
AWAY = (403, 407, 429)

IGNORED: dict[str, str] = {}
"""Advisories that need no mending here: the id, then the date and the reason."""


def why_unreachable(url: str) -> str | None:
    """Returns why the service cannot be asked; None where it answers."""
    query = json.dumps({"package": {"name": "pip", "ecosystem": "PyPI"}, "version": "26"}).encode()
    try:
        urllib.request.urlopen(urllib.request.Request(url, query), timeout=TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return f"it answers {error.code}" if error.code in AWAY or error.code >= 500 else None
    except OSError as error:
        return str(getattr(error, "reason", error))
    return None


def audit(lock: Path, url: str) -> int:
    """Returns the exit status, after saying what was found."""
    reason = why_unreachable(url)
    if reason is not None:
        print(f"audit: SKIPPED, nothing was looked up: {url} cannot be reached ({reason})")
        return 0
    # As a module, so that it is this environment's.
    command = [sys.executable, "-m", "pip_audit", "-r", str(lock), "--require-hashes"]
    options = ["--disable-pip", "-s", "osv", "--osv-url", url, "--timeout", str(TIMEOUT_S)]
    shown = ["--format", "json", "--progress-spinner", "off"]
    ignored = [option for advisory in IGNORED for option in ("--ignore-vuln", advisory)]
    done = subprocess.run(
        [*command, *options, *shown, *ignored], capture_output=True, text=True, check=False
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(f"audit: FAILED before its end; run again\n{done.stderr[-2000:]}")
        return 1
    known = [(package, vuln) for package in packages for vuln in package.get("vulns", ())]
    for package, vuln in known:
        mended = ", ".join(vuln["fix_versions"]) or "no version yet"
        names = ", ".join([vuln["id"], *vuln["aliases"]])
        print(f"audit: {package['name']} {package['version']}: {names}, mended in {mended}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        print(f"audit: not looked up: {', '.join(skipped)}")
    print(f"audit: {len(packages)} packages of {lock.name}, {len(known)} known vulnerabilities")
    return int(bool(known or skipped))


def main() -> None:
    """Audits the lock that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lock", type=Path)
    parser.add_argument("--osv-url", default=OSV)
    arguments = parser.parse_args()
    sys.exit(audit(arguments.lock, arguments.osv_url))


if __name__ == "__main__":
    main()
