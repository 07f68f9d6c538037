"""Other processes of this machine."""

import os


def is_running(pid: int) -> bool:
    """Returns whether a process with this PID is there, whoever owns it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
