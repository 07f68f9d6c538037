"""The two user interfaces, on loopback, as child processes that end with this one."""

import ipaddress
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from circuitseer_assets.errors import SettingsError
from circuitseer_assets.settings import PROJECT_ROOT
from resources import tracking, tracking_note
from resources.home import Home

LOOPBACK = "127.0.0.1"

log = logging.getLogger("circuitseer")


def serve(
    home: Home, *, host: str = LOOPBACK, dagster_port: int = 3000, mlflow_port: int = 5000
) -> int:
    """Returns the exit status of whichever server ended first, after ending the other.

    Neither server has a login of its own: they listen on loopback, and on another address only
    where it is named, after a warning.

    Raises:
        SettingsError: a port is in use, or the host is no address of this machine.
    """
    if not is_loopback(host):
        log.warning(
            "--host %s: whoever reaches ports %d and %d can run code on this machine and read what "
            "the home holds, for neither UI has a login; keep %s, and put a proxy with "
            "authentication in front of it, as deploy/README.md shows",
            *(host, dagster_port, mlflow_port, LOOPBACK),
        )
    _refuse_taken(host, dagster_port=dagster_port, mlflow_port=mlflow_port)
    home.set_environment()
    # Read by the processes that materialise: their links lead to these servers.
    _link_to(tracking_note.UI_BASE_VARIABLE, host, dagster_port)
    commands = [_dagster_command(host, dagster_port)]
    if home.tracking_uri.startswith("sqlite:"):
        _link_to(tracking.UI_BASE_VARIABLE, host, mlflow_port)
        commands.append(_mlflow_command(home, host, mlflow_port))
    # Handled before the servers start: they would inherit an ignored signal, and never end.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    servers = [
        subprocess.Popen(command, cwd=PROJECT_ROOT, start_new_session=True) for command in commands
    ]
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0
    finally:
        _end(servers)
    return next(server.returncode for server in servers if server.returncode is not None)


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches what listens on `host`, an address or a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _link_to(variable: str, host: str, port: int) -> None:
    name = f"[{host}]" if ":" in host else host
    os.environ.setdefault(variable, f"http://{name}:{port}")


def _refuse_taken(host: str, **ports: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for name, port in ports.items():
        try:
            socket.create_server((host, port), family=family).close()
        except OSError as error:
            option = f"--{name.replace('_', '-')}"
            raise SettingsError(
                f"{option} must be a free port of {host}, got {port} ({error.strerror}); "
                f"end what listens there, or name another port"
            ) from error


def _end(servers: Sequence[subprocess.Popen[bytes]]) -> None:
    for server in servers:
        server.terminate()
    for server in servers:
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            # With all it started: a server's own children would keep its port.
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _dagster_command(host: str, port: int) -> list[str]:
    program = str(Path(sys.executable).with_name("dagster"))
    return [program, "dev", "-w", "workspace.yaml", "-h", host, "-p", str(port)]


def _mlflow_command(home: Home, host: str, port: int) -> list[str]:
    program = str(Path(sys.executable).with_name("mlflow"))
    return [
        *[program, "server", "--host", host, "--port", str(port), "--workers", "1"],
        *["--backend-store-uri", home.tracking_uri],
        *["--default-artifact-root", str(home.folder / "mlartifacts")],
    ]
