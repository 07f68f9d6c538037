"""The two user interfaces, on loopback, as child processes that end with this one."""

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
from resources.home import Home
from resources.tracking import UI_BASE_VARIABLE

LOOPBACK = "127.0.0.1"


def serve(home: Home, *, dagster_port: int = 3000, mlflow_port: int = 5000) -> int:
    """Returns the exit status of whichever server ended first, after ending the other.

    Both servers listen on loopback only: neither has a login of its own.

    Raises:
        SettingsError: a port is in use.
    """
    _refuse_taken(dagster_port=dagster_port, mlflow_port=mlflow_port)
    home.set_environment()
    # Read by the processes that materialise: their links to MLflow lead to this server.
    os.environ[UI_BASE_VARIABLE] = f"http://{LOOPBACK}:{mlflow_port}"
    commands = [_dagster_command(dagster_port)]
    if home.tracking_uri.startswith("sqlite:"):
        commands.append(_mlflow_command(home, mlflow_port))
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


def _refuse_taken(**ports: int) -> None:
    for name, port in ports.items():
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                trial.bind((LOOPBACK, port))
            except OSError as error:
                option = f"--{name.replace('_', '-')}"
                raise SettingsError(
                    f"{option} must be a free port of {LOOPBACK}, got {port} ({error.strerror}); "
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


def _dagster_command(port: int) -> list[str]:
    program = str(Path(sys.executable).with_name("dagster"))
    return [program, "dev", "-w", "workspace.yaml", "-h", LOOPBACK, "-p", str(port)]


def _mlflow_command(home: Home, port: int) -> list[str]:
    program = str(Path(sys.executable).with_name("mlflow"))
    return [
        *[program, "server", "--host", LOOPBACK, "--port", str(port), "--workers", "1"],
        *["--backend-store-uri", home.tracking_uri],
        *["--default-artifact-root", str(home.folder / "mlartifacts")],
    ]
