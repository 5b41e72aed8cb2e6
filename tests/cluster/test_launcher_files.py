"""The files of cluster/ say what Ray, KubeRay and our commands understand; checked without any cloud."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from jobs.common import cli
from jobs.embed import EmbedOptions
from jobs.prepare import PrepareOptions
from jobs.serving.app import Settings
from jobs.serving.requests.guard import TOKEN
from jobs.train_stage import TrainOptions

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
LAUNCHERS = ("aws", "gcp")
STAGES = (1, 2, 3)
RAYJOBS = ("prepare", "embed", *(f"stage-{stage}" for stage in STAGES))

# What may follow each command in files that people paste from.
OPTIONS: dict[str, type] = {
    "jobs/prepare.py": PrepareOptions,
    "jobs/embed.py": EmbedOptions,
    "jobs/train_stage.py": TrainOptions,
}


def project_dependencies() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return list(project["dependencies"])


def ray_pin() -> str:
    (pin,) = [re.fullmatch(r"ray\[.*\]==(.+)", line) for line in project_dependencies() if line.startswith("ray[")]
    assert pin
    return pin[1]


def launcher(name: str) -> dict[str, Any]:
    return prepare_config(yaml.safe_load((CLUSTER / f"{name}.yaml").read_text()))


def kuberay(kind: str, name: str = "raycluster") -> dict[str, Any]:
    documents = yaml.safe_load_all((KUBERAY / f"{name}.yaml").read_text())
    (found,) = [document for document in documents if document["kind"] == kind]
    return found


def pods() -> list[dict[str, Any]]:
    spec = kuberay("RayCluster")["spec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def entrypoint(name: str) -> list[str]:
    return shlex.split(kuberay("RayJob", f"rayjob-{name}")["spec"]["entrypoint"])


def flag(command: list[str], name: str) -> str:
    return command[command.index(name) + 1]


def check_command(command: list[str]) -> None:
    python, script, *arguments = command
    assert python == "python"
    assert (ROOT / script).is_file()
    cli.check(cli.parse(OPTIONS[script], arguments))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ray_accepts_the_launcher_file(name: str) -> None:
    validate_config(launcher(name))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_groups_start_from_nothing_and_end_when_idle(name: str) -> None:
    config = launcher(name)
    groups = config["available_node_types"]
    assert set(groups) == {"head", "cpu-group", "gpu-group"}
    assert config["head_node_type"] == "head"
    bounds = {group: (groups[group]["min_workers"], groups[group]["max_workers"]) for group in groups}
    assert bounds == {"head": (0, 0), "cpu-group": (0, 8), "gpu-group": (0, 4)}
    assert config["max_workers"] == sum(most for _, most in bounds.values())
    assert 0 < config["idle_timeout_minutes"] <= 15


@pytest.mark.parametrize("name", LAUNCHERS)
def test_only_the_gpu_group_offers_gpus_and_the_head_takes_no_work(name: str) -> None:
    groups = launcher(name)["available_node_types"]
    assert groups["head"]["resources"] == {"CPU": 0}
    assert "GPU" not in groups["cpu-group"]["resources"]
    assert groups["gpu-group"]["resources"]["GPU"] >= 1
    assert groups["gpu-group"]["docker"]["worker_run_options"] == ["--gpus all"]


@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_node_asks_for_the_token_and_has_it(name: str) -> None:
    config = launcher(name)
    assert "-e RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_the_dashboard_listens_on_loopback_and_nothing_opens_ports_to_the_world(name: str) -> None:
    config = launcher(name)
    (start,) = [line for line in config["head_start_ray_commands"] if "--head" in line]
    options = dict(word.removeprefix("--").partition("=")[::2] for word in start.split() if word.startswith("--"))
    assert options["dashboard-host"] == "127.0.0.1"
    assert options["dashboard-port"] == "8265"
    (join,) = [line for line in config["worker_start_ray_commands"] if "--address" in line]
    assert f"--address=$RAY_HEAD_IP:{options['port']}" in join
    text = (CLUSTER / f"{name}.yaml").read_text()
    assert "0.0.0.0" not in text
    assert "IpPermissions" not in text


@pytest.mark.parametrize("name", LAUNCHERS)
def test_nodes_install_the_pins_of_pyproject(name: str) -> None:
    config = launcher(name)
    mounted = "/home/ray/nextgpt/pyproject.toml"
    assert config["file_mounts"][mounted] == "pyproject.toml"
    listing, install = config["setup_commands"]
    script = shlex.split(listing.partition(" > ")[0])[2].replace(mounted, str(ROOT / "pyproject.toml"))
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == project_dependencies()
    assert install.endswith(listing.partition(" > ")[2])


@pytest.mark.parametrize("name", LAUNCHERS)
def test_shared_storage_is_mounted_before_the_container_that_sees_it(name: str) -> None:
    config = launcher(name)
    assert "-v /shared:/shared" in config["docker"]["run_options"]
    assert any("mount -t nfs" in line and "/shared" in line for line in config["initialization_commands"])
    # Ray runs `(command)`: a comment inside a command would swallow the bracket.
    assert not any("#" in line for line in config["initialization_commands"] + config["setup_commands"])


@pytest.mark.parametrize("name", [*LAUNCHERS, "kuberay/raycluster", "kuberay/rayservice-chat", "kuberay/Dockerfile"])
def test_images_are_of_the_pinned_ray(name: str) -> None:
    path = CLUSTER / name if name.endswith("Dockerfile") else CLUSTER / f"{name}.yaml"
    tags = re.findall(r"(?:rayproject/ray|nextgpt-ray):(\S+)", path.read_text())
    assert tags
    assert {tag.partition("-")[0] for tag in tags} == {ray_pin()}


def test_what_must_be_edited_is_marked_and_told() -> None:
    readme = (CLUSTER / "README.md").read_text()
    for path in (CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml", KUBERAY / "raycluster.yaml"):
        placeholders = set(re.findall(r"[\w-]*EDIT[\w-]*", path.read_text())) - {"EDIT"}
        assert placeholders
        assert not {each for each in placeholders if each not in readme}, path.name


def test_ray_accepts_the_local_file() -> None:
    config = yaml.safe_load((CLUSTER / "local.yaml").read_text())
    # prepare_config would want this provider's defaults, which the wheel lacks: the file has to be whole.
    validate_config(config)
    assert config["provider"]["type"] == "fake_multinode"
    group = config["available_node_types"]["cpu-group"]
    assert (group["min_workers"], group["max_workers"]) == (0, 2)


def test_the_autoscaler_reads_the_same_groups_from_kuberay() -> None:
    cluster = kuberay("RayCluster")
    assert cluster["spec"]["enableInTreeAutoscaling"] is True
    cluster["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(config)
    groups = config["available_node_types"]
    bounds = {name: (group["min_workers"], group["max_workers"]) for name, group in groups.items()}
    assert bounds == {"headgroup": (0, 0), "cpu-group": (0, 8), "gpu-group": (0, 4)}
    assert groups["headgroup"]["resources"]["CPU"] == 0
    assert "GPU" not in groups["cpu-group"]["resources"]
    assert groups["gpu-group"]["resources"]["GPU"] == 1


def test_kuberay_asks_for_a_token_with_the_pinned_ray() -> None:
    spec = kuberay("RayCluster")["spec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == ray_pin()


def test_all_pods_run_one_image_and_see_the_shared_volume() -> None:
    claim = kuberay("PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    images = set()
    for pod in pods():
        (container,) = pod["containers"]
        images.add(container["image"])
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/shared"}]
    assert len(images) == 1


@pytest.mark.parametrize("name", RAYJOBS)
def test_rayjobs_run_our_commands_on_that_cluster(name: str) -> None:
    job = kuberay("RayJob", f"rayjob-{name}")
    assert job["metadata"]["name"] == f"nextgpt-{name}"
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": kuberay("RayCluster")["metadata"]["name"]}
    check_command(entrypoint(name))


def test_rayjobs_use_the_code_of_the_image() -> None:
    (workdir,) = re.findall(r"^WORKDIR (.+)$", (KUBERAY / "Dockerfile").read_text(), re.MULTILINE)
    for name in RAYJOBS:
        runtime_env = yaml.safe_load(kuberay("RayJob", f"rayjob-{name}")["spec"]["runtimeEnvYAML"])
        assert runtime_env == {"working_dir": workdir}


def test_each_rayjob_takes_what_the_one_before_made() -> None:
    shards = flag(entrypoint("prepare"), "--out")
    assert flag(entrypoint("embed"), "--shards") == shards
    previous = None
    for stage in STAGES:
        command = entrypoint(f"stage-{stage}")
        assert flag(command, "--stage") == str(stage)
        assert flag(command, "--shards") == shards
        assert (flag(command, "--init") if "--init" in command else None) == previous
        previous = flag(command, "--out")
        assert previous.startswith("/shared/")


def test_no_kuberay_file_is_left_unchecked() -> None:
    checked = {"raycluster", "rayservice-chat", *(f"rayjob-{name}" for name in RAYJOBS)}
    assert {path.stem for path in KUBERAY.glob("*.yaml")} == checked


def test_the_rayservice_serves_our_application_behind_a_token() -> None:
    spec = kuberay("RayService", "rayservice-chat")["spec"]
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    [application] = config.applications
    assert application.import_path == "jobs.serving.app:build"
    Settings.model_validate(application.args)
    assert application.runtime_env == {"working_dir": "local:///home/ray/nextgpt"}
    cluster = spec["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    containers = [group["template"]["spec"]["containers"][0] for group in groups]
    assert {container["image"] for container in containers} == {pods()[0]["containers"][0]["image"]}
    for container in containers:
        [token] = [variable for variable in container["env"] if variable["name"] == TOKEN]
        assert token["valueFrom"]["secretKeyRef"] == {"name": "nextgpt-chat", "key": "token"}
    ports = {port["name"]: port["containerPort"] for port in containers[0]["ports"]}
    assert ports["serve"] == config.http_options.port


def test_the_readme_submits_our_commands() -> None:
    text = (CLUSTER / "README.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^ *ray job submit --working-dir \. -- (python jobs/.*)$", text, re.MULTILINE)
    assert {shlex.split(command)[1] for command in commands} == set(OPTIONS)
    for command in commands:
        check_command(shlex.split(command))
