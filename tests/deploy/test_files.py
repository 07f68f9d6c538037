"""What lies in deploy/ means what it says: no secrets, pinned images, one way in, real names."""

import os
import re
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from circuitseer_assets.settings import PROJECT_ROOT, ScoringExecution
from resources.ray_cluster import ensure_fits
from tests.deploy.services import DEPLOY

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
EXAMPLE = dict(
    line.split("=", 1)
    for line in (DEPLOY / ".env.example").read_text().splitlines()
    if line and not line.startswith("#")
)


def manifests() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kuberay.yaml").read_text()))


def test_only_the_proxy_can_be_reached_and_from_this_machine_unless_said_otherwise() -> None:
    published = {
        name: made["ports"] for name, made in COMPOSE["services"].items() if "ports" in made
    }
    assert published == {"proxy": ["${PROXY_ADDRESS:-127.0.0.1}:443:443"]}
    assert EXAMPLE["PROXY_ADDRESS"] == "127.0.0.1"
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    outwards = {
        name for name, made in COMPOSE["services"].items() if "outwards" in made["networks"]
    }
    assert outwards == {"proxy", "code"}


def test_images_are_pinned_to_a_version() -> None:
    base = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.M)
    images = [made["image"] for made in COMPOSE["services"].values()]
    for image in {*base, *images}:
        assert re.search(r":(\d+\.\d+(\.\d+)?(-\w+)*|\$\{CIRCUITSEER_TAG:\?\})$", image), image


def test_no_secret_is_written_down_and_every_variable_is_in_the_example() -> None:
    texts = {path.name: path.read_text() for path in DEPLOY.iterdir() if path.is_file()}
    named = set(re.findall(r"\$\{([A-Z_]+):[?-]", texts["compose.yaml"]))
    assert named == set(EXAMPLE)
    for name, value in EXAMPLE.items():
        assert not value or not re.search("PASSWORD|TOKEN|WEBHOOK", name), name
    for name, made in COMPOSE["services"].items():
        for variable, value in (made.get("environment") or {}).items():
            if re.search("PASSWORD|TOKEN|WEBHOOK", variable):
                assert value.startswith("${"), (name, variable)


def test_what_the_files_name_is_there() -> None:
    volumes = {
        volume.split(":")[0]
        for made in COMPOSE["services"].values()
        for volume in made.get("volumes", [])
    }
    for source in volumes:
        if source.startswith("./") and source != "./settings.yaml":
            assert (DEPLOY / source).is_file(), source
        elif source.isalpha():
            assert source in COMPOSE["volumes"]
    for path in re.findall(r"/opt/circuitseer/(\S+\.yaml)", (DEPLOY / "compose.yaml").read_text()):
        assert (PROJECT_ROOT / path).is_file()
    for link in re.findall(r"\]\((?!https?://)([^)#]+)", (DEPLOY / "README.md").read_text()):
        assert (DEPLOY / link).exists(), link


def test_the_image_is_built_from_what_the_project_pins() -> None:
    for said in ("requirements.lock", "--require-hashes", "--no-deps"):
        assert said in (DEPLOY / "Dockerfile").read_text()
    [cluster] = [made for made in manifests() if made["kind"] == "RayCluster"]
    # Ray's driver and workers have to be of one version: the lock's.
    assert cluster["spec"]["rayVersion"] == version("ray")
    assert f"ray=={version('ray')} " in (PROJECT_ROOT / "requirements.lock").read_text()


def test_the_ray_cluster_stands_together() -> None:
    made = {manifest["kind"]: manifest for manifest in manifests()}
    claims = {m["metadata"]["name"] for m in manifests() if m["kind"] == "PersistentVolumeClaim"}
    spec = made["RayCluster"]["spec"]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for pod in (group["template"] for group in groups):
        mounted = {m["name"] for c in pod["spec"]["containers"] for m in c["volumeMounts"]}
        volumes = {
            v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["spec"]["volumes"]
        }
        assert mounted == set(volumes)
        assert set(volumes.values()) == claims
        selector = made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"]
        assert selector.items() <= pod["metadata"]["labels"].items()
    assert spec["authOptions"]["mode"] == "token"
    [group] = spec["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"]  # the operator keeps between these
    [container] = group["template"]["spec"]["containers"]
    asked = container["resources"]["requests"]
    there = {"CPU": int(asked["cpu"]), "GPU": int(asked["nvidia.com/gpu"])}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    [said] = re.findall(r"`execution\.scoring: (\{.*\})`", (DEPLOY / "README.md").read_text())
    ensure_fits(
        ScoringExecution(**yaml.safe_load(said)),
        {name: number * group["replicas"] for name, number in there.items()},
    )


@pytest.mark.parametrize("script", ["slurm.sbatch", "postgres_databases.sh"])
def test_the_scripts_can_be_read_by_their_shell(script: str) -> None:
    shell = (DEPLOY / script).read_text().partition("\n")[0].split("/")[-1].split()[-1]
    subprocess.run([shell, "-n", DEPLOY / script], check=True)


def test_compose_itself_takes_the_files(tmp_path: Path) -> None:
    docker = shutil.which("docker")
    has_plugin = (
        docker
        and not subprocess.run(
            [docker, "compose", "version"], capture_output=True, check=False
        ).returncode
    )
    if not has_plugin:
        pytest.skip("docker has no compose plugin here")
    environment = {**os.environ, **{name: value or "x" for name, value in EXAMPLE.items()}}
    files = ["-f", DEPLOY / "compose.yaml", "-f", DEPLOY / "compose.gpu.yaml"]
    subprocess.run(
        [docker, "compose", *files, "config", "--quiet"], env=environment, cwd=tmp_path, check=True
    )


def test_dagsters_configuration_is_the_projects_and_more() -> None:
    def holds(whole: Any, part: Any) -> bool:
        if not isinstance(part, dict):
            return bool(whole == part)
        return all(name in whole and holds(whole[name], value) for name, value in part.items())

    ours = yaml.safe_load((PROJECT_ROOT / "dagster.yaml").read_text())
    assert holds(yaml.safe_load((DEPLOY / "dagster.yaml").read_text()), ours)
