"""What can be wrong with the services that settings ask for, MLflow aside: extras, and Ray."""

import importlib.util
import shutil
from collections.abc import Iterator
from functools import partial

from circuitseer_assets.yaml_file import read_mapping
from resources.health import Finding, find_misfits
from resources.home import Home
from resources.ray_cluster import ensure_answers, find_abandoned


def check_services(home: Home) -> Iterator[Finding]:
    """Yields what the settings ask for and is not there, and what Ray's dead drivers left."""
    for folder in find_abandoned():
        yield Finding(
            "warning",
            f"{folder} was left by a Ray cluster whose driver died; nothing reads it",
            partial(shutil.rmtree, folder),
        )
    settings = home.settings()
    on_ray = settings.execution.scoring.backend == "ray"
    configured = read_mapping(home.folder / "dagster/dagster.yaml")
    asked_by = {
        "execution.scoring.backend": on_ray and "ray",
        "evaluation.backend": settings.evaluation.backend == "vllm" and "vllm",
        "storage in dagster.yaml": "postgres" in (configured.get("storage") or ()) and "postgres",
    }
    for setting, extra in asked_by.items():
        if extra:
            remedy = f"run `uv pip install -e '.[{extra}]'`, or change {setting}"
            yield from find_misfits(extra, remedy=remedy)
    address = settings.execution.ray.address
    if on_ray and address is not None and importlib.util.find_spec("ray") is not None:
        ensure_answers(address)
