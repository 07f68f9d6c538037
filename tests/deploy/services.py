"""Real servers on loopback ports, as deploy/ sets them up: PostgreSQL, nginx, MLflow, Dagster."""

import contextlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from circuitseer_assets.settings import PROJECT_ROOT

DEPLOY = PROJECT_ROOT / "deploy"
LOOPBACK = "127.0.0.1"
PASSWORDS = {
    # What has a meaning in a URL, in SQL and in YAML must reach the server as it is.
    "DAGSTER_POSTGRES_PASSWORD": "dag'ster: @/%40#",
    "MLFLOW_POSTGRES_PASSWORD": 'ml flow"$&',
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def wait_until(holds: Callable[[], bool], log: Path, limit_s: float = 90) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.2)


def wait_for_port(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    def is_listening() -> bool:
        assert server.poll() is None, log.read_text()[-4000:]
        with socket.socket() as probe:
            probe.settimeout(1)
            return probe.connect_ex((LOOPBACK, port)) == 0

    wait_until(is_listening, log, limit_s=240)


@contextlib.contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server from its start on; it and all it started are ended afterwards."""
    with log.open("wb") as said:
        server = subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env={**os.environ, **environment},
            stdout=said,
            stderr=said,
            start_new_session=True,
        )
    try:
        yield server
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, 9)
            server.wait()


def program(name: str) -> str:
    """A program of the environment the tests run in."""
    return str(Path(sys.executable).with_name(name))


@dataclass(frozen=True)
class Postgres:
    """A PostgreSQL server with the databases of deploy/postgres_databases.sh."""

    port: int

    @property
    def environment(self) -> Mapping[str, str]:
        """What deploy/dagster.yaml takes from the environment."""
        return {
            "CIRCUITSEER_DAGSTER_YAML": str(DEPLOY / "dagster.yaml"),
            "DAGSTER_POSTGRES_HOST": LOOPBACK,
            "DAGSTER_POSTGRES_PORT": str(self.port),
            "DAGSTER_POSTGRES_USER": "dagster",
            "DAGSTER_POSTGRES_PASSWORD": PASSWORDS["DAGSTER_POSTGRES_PASSWORD"],
            "DAGSTER_POSTGRES_DB": "dagster",
        }

    def query(self, sql: str, role: str = "dagster", database: str | None = None) -> list[tuple]:
        """The rows of a query, asked of the server by its own driver."""
        psycopg2 = pytest.importorskip("psycopg2")
        with (
            contextlib.closing(
                psycopg2.connect(
                    host=LOOPBACK,
                    port=self.port,
                    user=role,
                    dbname=database or role,
                    password=PASSWORDS[f"{role.upper()}_POSTGRES_PASSWORD"],
                )
            ) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)
            return cursor.fetchall()


def postgres_programs() -> Path:
    """The newest PostgreSQL server's programs; what is missing skips the test."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if not found and (there := shutil.which("initdb")):
        found = [Path(there)]
    if not found:
        pytest.skip("no PostgreSQL server is installed: apt-get install postgresql")
    return found[-1].parent


@contextlib.contextmanager
def postgres_server() -> Iterator[Postgres]:
    """An empty PostgreSQL server on a loopback port, set up by deploy/postgres_databases.sh."""
    programs = postgres_programs()
    # PostgreSQL refuses to run as root; the package brings a user for it.
    who = {"user": "postgres", "group": "postgres", "extra_groups": []} if _is_root() else {}
    # Not pytest's folder: another user cannot enter it, and a socket's path is short.
    with tempfile.TemporaryDirectory(prefix="circuitseer-pg-") as name:
        folder, port = Path(name), free_port()
        if who:
            shutil.chown(folder, "postgres", "postgres")
        superuser = folder / "superuser"
        superuser.write_text("superuser")
        superuser.chmod(0o644)

        def run(command: str, *options: str) -> None:
            done = subprocess.run(
                [programs / command, *options],
                cwd=folder,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                timeout=60,
                check=False,
                **who,  # type: ignore[call-overload]
            )
            assert done.returncode == 0, done.stderr

        data, log = str(folder / "data"), folder / "log"
        login = ["--username=postgres", "--auth=scram-sha-256", f"--pwfile={superuser}"]
        run("initdb", "--pgdata", data, "--encoding=UTF8", "--no-sync", *login)
        options = f"-h {LOOPBACK} -p {port} -k {folder} -c fsync=off"
        run("pg_ctl", "--pgdata", data, "--log", str(log), "--wait", "-o", options, "start")
        try:
            subprocess.run(
                [DEPLOY / "postgres_databases.sh"],
                env={
                    "PATH": f"{programs}:{os.environ['PATH']}",
                    "PGHOST": LOOPBACK,
                    "PGPORT": str(port),
                    "PGPASSWORD": "superuser",
                    "POSTGRES_USER": "postgres",
                    **PASSWORDS,
                },
                check=True,
                stdout=subprocess.DEVNULL,
                timeout=60,
            )
            yield Postgres(port)
        finally:
            run("pg_ctl", "--pgdata", data, "--wait", "--mode=immediate", "stop")


def _is_root() -> bool:
    if os.geteuid() != 0:
        return False
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root, and there is no user `postgres`")
    return True


def fill_in(text: str, values: Mapping[str, str]) -> str:
    """A text as the nginx image fills in its templates: what stands in ${BRACES}, nothing else."""
    return re.sub(r"\$\{([A-Z_]+)\}", lambda match: values[match[1]], text)


@contextlib.contextmanager
def nginx_server(folder: Path, values: Mapping[str, str]) -> Iterator[int]:
    """nginx on deploy/nginx.conf.template, and the loopback port on which it listens."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    port = free_port()
    (folder / "default.conf").write_text(
        fill_in(
            (DEPLOY / "nginx.conf.template").read_text(),
            {**values, "PROXY_LISTEN": f"{LOOPBACK}:{port}", "PRIVATE": str(folder)},
        )
    )
    kept = "\n".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log stderr;\n"
        + ("user root;\n" if os.geteuid() == 0 else "")
        + f"events {{}}\nhttp {{\naccess_log off;\n{kept}\ninclude {folder}/default.conf;\n}}\n"
    )
    log, command = folder / "nginx.log", [nginx, "-c", str(main), "-p", str(folder), "-e", "stderr"]
    with running(command, log) as server:
        wait_for_port(server, port, log)
        yield port
