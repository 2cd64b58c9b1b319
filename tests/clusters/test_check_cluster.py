"""Every rule sees a shipped file that breaks it in just that way; the shipped files themselves are clean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray.autoscaler
from breaking import DELETE, Break

import capsdist
from capsdist.clusters import check_file, placeholders

AWS, GCP, ONPREM = "aws-gpu.yaml", "gcp-gpu.yaml", "onprem.yaml"
CLUSTER, JOB = "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"
SHIPPED = (AWS, GCP, ONPREM, CLUSTER, JOB)
IMAGE = "YOUR-REGISTRY/capsdist:2.60.0-py311-capsdist0.1.0"
HEAD_START = "cd ~/capsdist; ulimit -n 65536; ray start --head --port=6379 --dashboard-host={} {}"
CONFIG = "--autoscaling-config=~/ray_bootstrap_config.yaml"
POD = "spec.workerGroupSpecs[0].template.spec"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_clean(name: str, home: Path, repo: Path) -> None:
    assert [str(problem) for problem in check_file(repo / "cluster" / name)] == []


def case(name: str, place: str, value: Any, rule: str, *, at: str | None = None, shown: Any = DELETE) -> Any:
    """A shipped file with `value` at `place`; the problem stands `at` (default: there), with the value."""
    if shown is DELETE:
        shown = None if value is DELETE else value
    return pytest.param(name, place, value, at or place, shown, rule, id=f"{name}:{place}:{at}:{shown}"[:90])


RULES = [
    # Ray's schema, and its validation as a whole
    case(AWS, "idle_timeout_minuts", 8, "did you mean 'idle_timeout_minutes'"),
    case(GCP, "cluster_name", DELETE, "is missing"),
    case(GCP, "available_node_types.head.resources.CPU", 0.5, "must have type 'integer'"),
    case(AWS, "docker", {"container_name": "x"}, "Ray refuses it", at="file", shown="capsdist"),
    # provider
    case(AWS, "provider.type", "asw", "did you mean 'aws'"),
    case(AWS, "provider.cache_stoped_nodes", True, "did you mean 'cache_stopped_nodes'"),
    case(AWS, "provider.region", DELETE, "is needed by provider aws"),
    case(AWS, "provider.region", "us-wset-2", "did you mean 'us-west-2'"),
    case(GCP, "provider.region", DELETE, "is needed by provider gcp"),
    case(GCP, "provider.project_id", DELETE, "is needed by provider gcp"),
    case(GCP, "provider.availability_zone", "us-west1-b", "is not in provider.region='us-central1'"),
    case(ONPREM, "provider.head_ip", DELETE, "is needed by provider local"),
    case(ONPREM, "provider.worker_ips", ["192.0.2.2", "192.0.2.1"], "is listed twice", shown="192.0.2.1"),
    case(ONPREM, "max_workers", 1, "leaves machines out of provider.worker_ips, which lists 2"),
    # how many of each type, and which
    case(AWS, "available_node_types.gpu_spot.min_workers", 5, "exceeds max_workers=4 of this type"),
    case(AWS, "available_node_types.gpu_spot.max_workers", 9, "exceeds max_workers=4 of the whole cluster"),
    case(GCP, "available_node_types.gpu_spot.min_workers", -1, "must be at least 0"),
    case(GCP, "max_workers", 1, "of the whole", at="available_node_types.gpu_spot.max_workers", shown=4),
    case(AWS, "head_node_type", "haed", "did you mean 'head'"),
    case(AWS, "available_node_types.head.resources.CPU", 4, "lets the head train"),
    case(GCP, "available_node_types.head.max_workers", 1, "as a worker too"),
    case(
        AWS, "available_node_types.head.node_config.InstanceMarketOptions", {"MarketType": "spot"},
        "taken away at any time", at="available_node_types.head.node_config", shown="spot",
    ),
    case(AWS, "available_node_types.gpu_on_demand.priority", 1, "asked for before gpu_spot"),
    case(
        GCP, "available_node_types.gpu_spot.priority", 0, "asked for before gpu_spot",
        at="available_node_types.gpu_on_demand.priority",
    ),
    # node_config
    case(AWS, "available_node_types.head.node_config.InstanceTyp", "m5.large", "did you mean 'InstanceType'"),
    case(AWS, "available_node_types.head.node_config.InstanceType", "m5.lagre", "is no InstanceType that"),
    case(
        AWS, "available_node_types.head.node_config.BlockDeviceMappings[0].Ebs.VolumeSize", "150",
        "must be of type integer",
    ),
    case(AWS, "available_node_types.head.node_config.ImageId", DELETE, "default image is an Ubuntu 18.04"),
    case(AWS, "available_node_types.head.node_config.IamInstanceProfile", DELETE, "no credentials for S3"),
    case(
        GCP, "available_node_types.gpu_spot.node_config.scheduling.provisioningModell", "SPOT",
        "did you mean 'provisioningModel'",
    ),
    case(GCP, "available_node_types.head.node_config.machineType", DELETE, "is missing"),
    # files
    case(ONPREM, "file_mounts.~/x", "no/such", "does not exist"),
    case(ONPREM, "file_mounts.~/x", ".", "is a whole checkout"),
    case(ONPREM, "auth.ssh_private_key", "~/.ssh/none", "does not exist"),
    case(AWS, "file_mounts", {}, "brings no token", shown=[]),
    # ports
    case(
        AWS, "head_start_ray_commands[1]", HEAD_START.format("0.0.0.0", CONFIG), "opens the dashboard",
        shown="--dashboard-host=0.0.0.0",
    ),
    case(
        AWS, "provider.security_group.IpPermissions",
        [{"FromPort": 8265, "ToPort": 8265, "IpProtocol": "tcp", "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
        "opens port 8265 to the whole internet",
        at="provider.security_group.IpPermissions[0]", shown="0.0.0.0/0",
    ),
    # commands
    case(
        AWS, "head_start_ray_commands[1]", HEAD_START.format("127.0.0.1", ""), "has no --autoscaling-config",
        shown="ray start --head",
    ),
    case(GCP, "worker_start_ray_commands[1]", "ray start --address=x:1", "file limit", shown="ray start"),
    case(AWS, "setup_commands", DELETE, "Ray's default installs a nightly wheel"),
    case(GCP, "head_start_ray_commands", DELETE, "Ray's default opens the dashboard on 0.0.0.0"),
    case(ONPREM, "setup_commands[0]", "true", "sets RAY_AUTH_MODE nowhere", at="setup_commands", shown=None),
    case(
        ONPREM, "setup_commands[0]", "export RAY_AUTH_MODE=disabled", "takes jobs from anyone",
        shown="RAY_AUTH_MODE=disabled",
    ),
    # versions
    case(ONPREM, "setup_commands[2]", "pip install torch", "has no fixed version", shown="torch"),
    case(AWS, "head_setup_commands[0]", "pip install 'b>=1.4'", "has no fixed version", shown="b>=1.4"),
    case(ONPREM, "setup_commands[2]", "x || (pip install -U -c f 'ray @ https://y/ray-wheels/latest/z.whl')",
         "is a nightly build", shown="ray @ https://y/ray-wheels/latest/z.whl"),
    case(ONPREM, "setup_commands[2]", "uv pip install --pre x==1", "installs pre-releases", shown="--pre"),
    case(ONPREM, "setup_commands[2]", "python -m pip install 'ray[default]==2.9.0'",
         "is not the Ray that launches", shown="ray[default]==2.9.0"),
    case(AWS, "docker", {"image": "rayproject/ray:latest", "container_name": "ray"},
         "is another image tomorrow", at="docker.image", shown="rayproject/ray:latest"),
    case(AWS, "docker", {"image": "rayproject/ray:2.9.0-py311", "container_name": "ray"},
         "is not that of Ray 2.60.0", at="docker.image", shown="rayproject/ray:2.9.0-py311"),
    # secrets
    case(AWS, "setup_commands[0]", "export AWS_SECRET_ACCESS_KEY=abc", "secret in clear", shown="..."),
    case(AWS, "provider.aws_credentials", {"aws_secret_access_key": "abc"}, "is a secret in clear",
         at="provider.aws_credentials.aws_secret_access_key", shown="..."),
    # KubeRay
    case(JOB, "spec.entrypoint", "python jobs/train_cifarr.py --x 1", "did you mean 'jobs/train_cifar.py'",
         shown="jobs/train_cifarr.py"),
    case(CLUSTER, f"{POD}.containers[0].resources.limits", {"nvidia.com/gpus": "1"},
         "did you mean 'nvidia.com/gpu'", at=f"{POD}.containers[0].resources.limits.nvidia.com/gpus",
         shown="1"),
    case(CLUSTER, "apiVersion", "ray.io/v1alpha1", "is an old version"),
    case(JOB, "kind", "RayJop", "did you mean 'RayJob'"),
    case(CLUSTER, "spec.rayVersion", DELETE, "is missing"),
    case(CLUSTER, "spec.rayVersion", "2.59.0", "is not that of Ray 2.59.0",
         at="spec.headGroupSpec.template.spec.containers[0].image", shown=IMAGE),
    case(CLUSTER, f"{POD}.containers[0].image", "rayproject/ray:nightly", "is another image tomorrow"),
    case(CLUSTER, f"{POD}.containers[0].image", "rayproject/ray:2.59.0", "is not that of Ray 2.60.0"),
    case(CLUSTER, "spec.authOptions", DELETE, "run jobs", at="spec.authOptions.mode"),
    case(JOB, "spec.rayClusterSpec.authOptions.mode", "disabled", "run jobs"),
    case(CLUSTER, "spec.authOption", {}, "did you mean 'authOptions'"),
    case(CLUSTER, "spec.workerGroupSpecs[0].minReplicas", 5, "exceeds maxReplicas=4"),
    case(CLUSTER, "spec.workerGroupSpecs[0].replicas", 5, "is not between minReplicas=0 and maxReplicas=4"),
    case(CLUSTER, "spec.workerGroupSpecs[0].maxReplicas", DELETE, "nothing limits the bill"),
    case(CLUSTER, "spec.headGroupSpec.rayStartParams.num-cpus", DELETE, "lets the head train"),
    case(CLUSTER, "spec.headGroupSpec.serviceType", "LoadBalancer", "opens dashboard, client and GCS"),
    case(CLUSTER, "spec.headGroupSpec.enableIngress", True, "opens the dashboard"),
    case(CLUSTER, f"{POD}.hostNetwork", True, "opens Ray's ports"),
    case(CLUSTER, f"{POD}.restartPolicy", DELETE, "written off"),
    case(CLUSTER, f"{POD}.containers[0].ports", [{"containerPort": 8265, "hostPort": 8265}],
         "opens the port", at=f"{POD}.containers[0].ports[0].hostPort", shown=8265),
    case(CLUSTER, f"{POD}.containers[0].env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}],
         "is AWS_SECRET_ACCESS_KEY in clear", at=f"{POD}.containers[0].env[0].value", shown="..."),
    case(JOB, "spec.shutdownAfterJobFinishes", DELETE, "leaves the cluster and its bill running"),
    case(JOB, "spec.shutdownAfterJobFinishes", False, "leaves the cluster and its bill running"),
    case(JOB, "spec.ttlSecondsAfterFinished", DELETE, "takes pods and logs away"),
    case(JOB, "spec.entrypoint", DELETE, "is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "value", "field", "shown", "rule"), RULES)
def test_a_broken_file_is_seen_with_field_and_value(
    name, place, value, field, shown, rule, broken: Break
) -> None:
    lines = [str(problem) for problem in check_file(broken(name, place, value))]
    assert [line for line in lines if line.startswith(f"{field}={shown!r}: ") and rule in line], lines
    assert all("\n" not in line for line in lines)


def test_rays_own_defaults_for_aws_have_many_problems(home: Path) -> None:
    found = check_file(Path(ray.autoscaler.__file__).with_name("aws") / "defaults.yaml")
    assert {problem.field for problem in found} == {
        "available_node_types.ray.head.default.resources.CPU",
        "available_node_types.ray.head.default.node_config.ImageId",
        "available_node_types.ray.worker.default.node_config.ImageId",
        "file_mounts",
        "setup_commands[1]",  # a nightly wheel
        "head_setup_commands[0]",
        "head_start_ray_commands[1]",  # a public dashboard
        "setup_commands",  # no token
    }


def test_all_problems_are_reported_at_once(broken: Break) -> None:
    path = broken(AWS, "provider", {"type": "aws", "regoin": "us-west-2"})
    path.write_text(path.read_text().replace("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"))
    fields = [problem.field for problem in check_file(path)]
    assert set(fields) == {"head_start_ray_commands[1]", "provider.regoin", "provider.region"}


@pytest.mark.parametrize(
    ("name", "field"),
    [(".ray/auth_token", "file_mounts.~/.ray/auth_token"), (".ssh/id_ed25519", "auth.ssh_private_key")],
)
def test_a_secret_that_others_can_read_is_seen(name: str, field: str, home: Path, repo: Path) -> None:
    (home / name).chmod(0o644)
    [problem] = check_file(repo / "cluster" / ONPREM)
    assert (problem.field, problem.value) == (field, f"~/{name}")
    assert "has mode 0644" in problem.rule


def test_a_missing_token_is_seen_with_the_command_that_makes_one(home: Path, repo: Path) -> None:
    (home / ".ray" / "auth_token").unlink()
    [problem] = check_file(repo / "cluster" / AWS)
    assert (problem.field, problem.value) == ("file_mounts.~/.ray/auth_token", "~/.ray/auth_token")
    command = problem.fix.removeprefix("make one: ")
    subprocess.run(
        ["bash", "-c", command],
        check=True,
        env={"HOME": str(home), "PATH": str(Path(sys.executable).parent) + ":/usr/bin:/bin"},
    )
    assert check_file(repo / "cluster" / AWS) == []


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        (AWS, "setup_commands[0]", "export AWS_SECRET_ACCESS_KEY=plantedsecret"),
        (AWS, "setup_commands", "export AWS_SECRET_ACCESS_KEY=plantedsecret"),
        (ONPREM, "provider.aws_credentials", {"aws_secret_access_key": "plantedsecret"}),
        (CLUSTER, f"{POD}.containers[0].env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "plantedsecret"}]),
    ],
)
def test_secrets_are_not_printed(name, place, value, broken: Break) -> None:
    printed = "\n".join(map(str, check_file(broken(name, place, value))))
    assert "in clear" in printed
    assert "plantedsecret" not in printed


LAUGHS = "a: &a [" + "ha, " * 9 + "]\n"
LAUGHS += "".join(
    f"{name}: &{name} [{', '.join(9 * [f'*{before}'])}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "field", "value", "rule"),
    [
        (
            LAUGHS,
            "file",
            "PATH",
            "stands for more than 4,000,000 characters, because its aliases repeat them",
        ),
        ("a: &a {b: *a}\n", "file", "PATH", "repeats itself without end by an alias (line 1)"),
        ("a: " + "x" * 1_000_000, "file", "PATH", "has more than 1,000,000 bytes"),
        ("a: " + "[" * 5_000 + "]" * 5_000, "file", "PATH", "is nested too deeply"),
        ("a: 2026-13-45\n", "file", "PATH", "is not YAML: month must be in 1..12"),
        ("? [a]\n: b\n", "file", "PATH", "is not YAML"),
        ("a: " + "9" * 5_000, "file", "PATH", "is not YAML: Exceeds the limit"),
        ("provider: {type: aws", "file", "PATH", "is not YAML"),
        ("- a list", "file", "PATH", "holds no mapping"),
        ("", "file", "PATH", "holds no mapping"),
        (
            "cluster_name: a\ncluster_name: b\n",
            "cluster_name",
            "cluster_name",
            "occurs twice in one mapping (line 2)",
        ),
    ],
)
def test_a_file_that_is_not_a_cluster_file(text, field, value, rule, home: Path) -> None:
    path = home / "cluster.yaml"
    path.write_text(text)
    problem = check_file(path)[0]
    assert (problem.field, problem.value) == (field, value.replace("PATH", str(path)))
    assert rule in problem.rule


def test_a_file_that_does_not_exist(home: Path) -> None:
    [problem] = check_file(home / "none.yaml")
    assert (problem.field, problem.value) == ("file", str(home / "none.yaml"))


def test_wrong_kinds_everywhere_end_in_problems_not_in_a_traceback(broken: Break) -> None:
    for name in (AWS, GCP, ONPREM):
        assert check_file(broken(name, "provider", "aws"))
    assert check_file(broken(AWS, "available_node_types", ["head"]))
    assert check_file(broken(AWS, "setup_commands", "pip install ray"))
    assert check_file(broken(CLUSTER, "spec", []))


def test_placeholders_are_listed_once(repo: Path) -> None:
    assert placeholders(repo / "cluster" / AWS) == ["YOUR-BUCKET"]
    assert placeholders(repo / "cluster" / ONPREM) == ["192.0.2.1", "192.0.2.2", "192.0.2.3", "YOUR-USER"]


def run_checker(*words: Path | str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "capsdist", "check-cluster", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_ends_with_0_on_a_clean_file(home: Path, repo: Path) -> None:
    done = run_checker(repo / "cluster" / AWS, "--template")
    assert (done.returncode, done.stdout) == (0, f"{repo}/cluster/{AWS}: no problem found\n")
    assert done.stderr == f"note: {repo}/cluster/{AWS}: YOUR-BUCKET is a placeholder, fill it in\n"


def test_a_file_that_is_not_filled_in_is_not_to_be_launched(home: Path, repo: Path) -> None:
    done = run_checker(repo / "cluster" / AWS)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {repo}/cluster/{AWS}: YOUR-BUCKET is a placeholder, fill it in\n"


def test_the_command_ends_with_2_and_one_line_a_problem(broken: Break, repo: Path) -> None:
    path = broken(JOB, "spec.ttlSecondsAfterFinished", 0)
    done = run_checker(repo / "cluster" / JOB, path, "--template")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    rule = "takes pods and logs away in the moment the job ends"
    assert errors == [f"error: {path}: spec.ttlSecondsAfterFinished=0: {rule}; set e.g. 300"]


@pytest.mark.parametrize("name", [AWS, GCP, ONPREM, "kuberay/Dockerfile"])
def test_versions_are_those_of_the_project(name: str, repo: Path) -> None:
    text, constraints = (repo / "cluster" / name).read_text(), (repo / "constraints-cpu.txt").read_text()
    pins = dict(line.split("==") for line in constraints.splitlines() if "==" in line)
    installed = f"torch=={pins['torch']} 'ray[default,train,tune]=={pins['ray']}' -e"
    assert installed in " ".join(text.split())
    marks = (f"version('capsdist') == '{capsdist.__version__}'", f"capsdist{capsdist.__version__}")
    assert any(mark in text for mark in marks)


@pytest.mark.parametrize("name", [CLUSTER, JOB])
def test_the_image_is_the_one_that_the_dockerfile_builds(name: str, repo: Path) -> None:
    assert f"-t {IMAGE} ." in (repo / "cluster/kuberay/Dockerfile").read_text()
    assert (repo / "cluster" / name).read_text().count(IMAGE) == 1
