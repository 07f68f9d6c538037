"""The two user interfaces, on loopback, as child processes that end with this one."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from circuitseer_assets.settings import PROJECT_ROOT
from resources.home import Home

LOOPBACK = "127.0.0.1"


def serve(home: Home, *, dagster_port: int = 3000, mlflow_port: int = 5000) -> int:
    """Returns the exit status of whichever server ended first, after ending the other.

    Both servers listen on loopback only: neither has a login of its own.
    """
    home.set_environment()
    commands = [_dagster_command(dagster_port)]
    if home.tracking_uri.startswith("sqlite:"):
        commands.append(_mlflow_command(home, mlflow_port))
    servers = [subprocess.Popen(command, cwd=PROJECT_ROOT) for command in commands]
    signal.signal(signal.SIGTERM, _stop)
    try:
        while all(server.poll() is None for server in servers):
            time.sleep(0.5)
    except KeyboardInterrupt:
        return 0
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.wait(timeout=30)
    return next(server.returncode for server in servers if server.returncode is not None)


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
