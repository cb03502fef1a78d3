"""cluster.yaml against Ray's own schema, and against what that schema lets through."""

import copy
import re
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
CONFIG = yaml.safe_load((ROOT / "cluster.yaml").read_text())
PINS = dict(re.findall(r"^([\w.-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), re.M))

AWS_KEYS = {
    "type",
    "region",
    "availability_zone",
    "cache_stopped_nodes",
    "use_internal_ips",
    "security_group",
    "key_pair",
}


def mistakes(config) -> list[str]:
    """What Ray's validator does not see."""
    types, docker = config["available_node_types"], config["docker"]
    head = types[config["head_node_type"]]
    workers = {name: node for name, node in types.items() if name != config["head_node_type"]}
    found = [f"provider key {key}" for key in config["provider"].keys() - AWS_KEYS]
    found += [f"{name}: max_workers" for name, node in workers.items() if node.get("max_workers", 0) <= 0]
    if sum(node.get("max_workers", 0) for node in workers.values()) < config["max_workers"]:
        found.append("max_workers cannot be reached")
    if head["resources"].get("GPU"):
        found.append("GPUs on the head")
    if head["resources"].get("CPU") != 0:
        found.append("trainings on the head")
    if not any("--constraint" in c and "constraints.txt" in c for c in config["setup_commands"]):
        found.append("versions are not those of constraints.txt")
    if f"ray:{PINS['ray']}-py311" not in docker["image"]:
        found.append("the image has another Ray or Python")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        found += [f"{key}: RAY_AUTH_MODE" for c in config[key] if "ray st" in c and "RAY_AUTH_MODE=" not in c]
        if not any("ray start" in command for command in config[key]):
            found.append(f"{key} do not start Ray")
    if "~/.ray/auth_token" not in config["file_mounts"]:
        found.append("nodes have no token")
    volumes = [option for option in docker["run_options"] if option.startswith("--volume=")]
    shared = [volume.split("=")[1].split(":")[0] for volume in volumes]
    if not any("mount " in c and path in c for c in config["initialization_commands"] for path in shared):
        found.append("no shared storage")
    server = next((c for c in config["head_start_ray_commands"] if "mlflow server" in c), "")
    if "0.0.0.0" in server or "--allowed-hosts" not in server:
        found.append("MLflow is open, or answers to nobody")
    return found


def test_ray_accepts_it():
    validate_config(prepare_config(copy.deepcopy(CONFIG)))


def test_it_has_none_of_the_mistakes_that_ray_lets_through():
    assert mistakes(CONFIG) == []


def planted(path: str, value):
    config = copy.deepcopy(CONFIG)
    *parents, last = path.split(".")
    place = config
    for key in parents:
        place = place[key]
    place[last] = value
    return config


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("provider.regoin", "us-east-1"),
        ("available_node_types.gpu.max_workers", 0),
        ("available_node_types.gpu.max_workers", 1),
        ("available_node_types.head.resources", {"CPU": 0, "GPU": 1}),
        ("available_node_types.head.resources", {"CPU": 8}),
        ("setup_commands", ["pip install lowland"]),
        ("docker.image", "rayproject/ray:2.59.0-py311-gpu"),
        ("head_start_ray_commands", ["ray start --head"]),
        ("worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP:6379"]),
        ("file_mounts", {}),
        ("initialization_commands", []),
    ],
)
def test_planted_mistakes_pass_ray_and_are_found_here(path, value):
    config = planted(path, value)
    validate_config(prepare_config(copy.deepcopy(config)))
    assert mistakes(config) != []


@pytest.mark.parametrize("path", ["unknown", "docker.imgae", "available_node_types.gpu.resourcse"])
def test_ray_itself_refuses_unknown_keys(path):
    with pytest.raises(Exception, match=r"does not match|Additional properties|config file"):
        validate_config(prepare_config(planted(path, {})))


def test_every_node_sees_the_same_values_to_replace():
    """A subnet or group that was replaced in one place only would leave nodes that cannot talk."""
    text = (ROOT / "cluster.yaml").read_text()
    nodes = CONFIG["available_node_types"].values()
    interfaces = [face for node in nodes for face in node["node_config"]["NetworkInterfaces"]]
    assert len({(face["SubnetId"], *face["Groups"]) for face in interfaces}) == 1
    assert text.count("-REPLACE") == 2 * len(interfaces) + 1
