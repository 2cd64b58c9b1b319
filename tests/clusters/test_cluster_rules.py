"""Every rule sees a shipped file that breaks it in just that way, and lets the right forms pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from breaking import DELETE, Break

from capsdist.clusters import check_file

AWS, GCP, ONPREM = "aws-gpu.yaml", "gcp-gpu.yaml", "onprem.yaml"
CLUSTER, JOB = "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"
SHIPPED = (AWS, GCP, ONPREM, CLUSTER, JOB)
IMAGE = "YOUR-REGISTRY/capsdist:2.60.0-py311-capsdist0.1.0"
HEAD_START = "cd ~/capsdist; ray start --head --port=6379 {}"
HEAD_POD, POD = "spec.headGroupSpec.template.spec", "spec.workerGroupSpecs[0].template.spec"
PERMISSIONS, NODE = "provider.security_group.IpPermissions", "available_node_types.head.node_config"
OPEN, SECRET, NOT_FIXED = "takes jobs from anyone", "holds a secret in clear", "has no fixed version"
PRIVILEGED = "gives the pod rights over the machine"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_is_clean(name: str, home: Path, repo: Path) -> None:
    assert [str(problem) for problem in check_file(repo / "cluster" / name)] == []


def case(name: str, place: str, value: Any, rule: str, *, at: str | None = None, shown: Any = DELETE) -> Any:
    """A shipped file with `value` at `place`; the problem stands `at` (default: there), with the value."""
    if shown is DELETE:
        shown = None if value is DELETE else value
    return pytest.param(name, place, value, at or place, shown, rule, id=f"{name}:{place}:{value}"[:90])


def start(options: str, rule: str, shown: str) -> Any:
    """A head that Ray starts with `options`."""
    return case(ONPREM, "head_start_ray_commands[1]", HEAD_START.format(options), rule, shown=shown)


def port(rule: str, cidr: str = "0.0.0.0/0", *, first: int = 8265, last: int = 8265, protocol="tcp") -> Any:
    """A security group that opens ports."""
    permission = {"FromPort": first, "ToPort": last, "IpProtocol": protocol, "IpRanges": [{"CidrIp": cidr}]}
    return case(AWS, PERMISSIONS, [permission], rule, at=f"{PERMISSIONS}[0]", shown=cidr)


def setup(command: str, shown: str, rule: str) -> Any:
    """A command that every node runs."""
    return case(ONPREM, "setup_commands[2]", command, rule, shown=shown)


def image(value: str, rule: str) -> Any:
    return case(
        AWS, "docker", {"image": value, "container_name": "ray"}, rule, at="docker.image", shown=value
    )


def pod(place: str, value: Any, rule: str, *, at: str = "", shown: Any = DELETE) -> Any:
    """A worker's pod; `at` is relative to `place`."""
    return case(CLUSTER, f"{POD}.{place}", value, rule, at=f"{POD}.{place}{at}", shown=shown)


VALIDATORS = [
    # Ray's schema, and its validation as a whole
    case(AWS, "idle_timeout_minuts", 8, "did you mean 'idle_timeout_minutes'"),
    case(GCP, "cluster_name", DELETE, "is missing"),
    case(GCP, "available_node_types.head.resources.CPU", 0.5, "must have type 'integer'"),
    case(AWS, "docker", {"container_name": "x"}, "Ray refuses it", at="file", shown="capsdist"),
    case(AWS, "provider.type", "asw", "Unsupported node provider: asw", at="file", shown="capsdist"),
    case(AWS, "head_node_type", "haed", "`head_node_type` must be one of", at="file", shown="capsdist"),
    case(ONPREM, "provider.head_ip", DELETE, "Please supply a `head_ip`", at="file", shown="capsdist"),
    case(AWS, "available_node_types.gpu_spot.min_workers", 5, "smaller than the sum of `min_workers`",
         at="file", shown="capsdist"),
    # botocore's parameter validation
    case(AWS, f"{NODE}.InstanceTyp", "m5.large", "did you mean 'InstanceType'"),
    case(AWS, f"{NODE}.ImageId", ["ami-1"], "must be of type str"),
    case(AWS, f"{NODE}.BlockDeviceMappings[0].Ebs.VolumeSize", "150", "must be of type int"),
    case(AWS, PERMISSIONS, [{"IpRanges": [{"CidrIP": "0.0.0.0/0"}]}], "did you mean 'CidrIp'",
         at=f"{PERMISSIONS}[0].IpRanges[0].CidrIP", shown="0.0.0.0/0"),
    # kubernetes-validate
    pod("restartPolcy", "Never", "did you mean 'restartPolicy'"),
    pod("containers[0].workingdir", "/x", "did you mean 'workingDir'"),
    pod("containers[0].name", DELETE, "is missing"),
    pod("terminationGracePeriodSeconds", "60", "must have type"),
    pod("containers[0].resources.limits", {"nvidia.com/gpu": [1]}, "does not fit Kubernetes' pods",
        at=".nvidia.com/gpu", shown=[1]),
    case(JOB, "spec.submitterPodTemplate", {"spec": {"containers": [{"name": "x", "comand": []}]}},
         "did you mean 'command'", at="spec.submitterPodTemplate.spec.containers[0].comand", shown=[]),
]  # fmt: skip
FIELDS = [  # of RayCluster and RayJob
    case(CLUSTER, "apiVersion", "ray.io/v1alpha1", "is an old version"),
    case(JOB, "kind", "RayJop", "did you mean 'RayJob'"),
    case(CLUSTER, "spec.rayVersion", DELETE, "is missing"),
    case(CLUSTER, "spec.authOption", {}, "did you mean 'authOptions'"),
    case(CLUSTER, "spec.authOptions.mode", "tokens", "choose one of token, disabled"),
    case(JOB, "spec.rayClusterSpec.autoscalerOptions.idleTimeoutSecond", 1, "did you mean 'idleTimeoutSeco"),
    case(CLUSTER, "spec.headGroupSpec.rayStartParams.num-cpus", 0, "must have type 'string'"),
    case(CLUSTER, "spec.workerGroupSpecs[0].maxReplicas", "4", "must have type 'integer'"),
    case(CLUSTER, "spec.workerGroupSpecs[0].minReplicas", 5, "exceeds maxReplicas=4"),
    case(CLUSTER, "spec.workerGroupSpecs[0].replicas", 5, "is not between minReplicas=0 and maxReplicas=4"),
    case(CLUSTER, "spec.workerGroupSpecs[0].maxReplicas", DELETE, "nothing limits the bill"),
    case(CLUSTER, "spec.headGroupSpec.rayStartParams.num-cpus", DELETE, "lets the head train"),
    pod("restartPolicy", DELETE, "written off"),
    case(JOB, "spec.shutdownAfterJobFinishes", DELETE, "leaves the cluster and its bill running"),
    case(JOB, "spec.shutdownAfterJobFinishes", False, "leaves the cluster and its bill running"),
    case(JOB, "spec.ttlSecondsAfterFinished", DELETE, "takes pods and logs away"),
    case(JOB, "spec.entrypoint", DELETE, "is missing"),
    case(JOB, "spec.runtimeEnvYAML", "pip: [", "\"spec.runtimeEnvYAML\", line 1", at="file", shown="PATH"),
]  # fmt: skip
TOKEN = [
    case(AWS, "file_mounts", {}, "brings no token", shown=[]),
    case(ONPREM, "file_mounts", {"~/auth_token": "~/.ray/auth_token"}, "brings no token",
         shown=["~/auth_token"]),
    case(ONPREM, "auth.ssh_private_key", "~/.ssh/none", "does not exist"),
    case(ONPREM, "setup_commands[0]", "true", "nowhere for head", at="setup_commands", shown=None),
    case(ONPREM, "setup_commands[0]", "true", "nowhere for worker", at="setup_commands", shown=None),
    case(GCP, "setup_commands[0]", "# RAY_AUTH_MODE=token", "sets RAY_AUTH_MODE nowhere", at="setup_commands",
         shown=None),
    case(AWS, "available_node_types.gpu_spot.worker_setup_commands", [], "nowhere for gpu_spot", shown=None),
    setup("export RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE=disabled", OPEN),
    case(AWS, "worker_start_ray_commands[1]", "RAY_AUTH_MODE=disabled ray start", OPEN,
         shown="RAY_AUTH_MODE=disabled"),
    case(CLUSTER, "spec.authOptions", DELETE, "run jobs", at="spec.authOptions.mode"),
    case(JOB, "spec.rayClusterSpec.authOptions.mode", "disabled", "run jobs"),
    case(CLUSTER, f"{HEAD_POD}.containers[0].env[0]", {"name": "RAY_AUTH_MODE", "value": "disabled"}, OPEN,
         at=f"{HEAD_POD}.containers[0].env[0].value", shown="RAY_AUTH_MODE=disabled"),
]  # fmt: skip
PORTS = [
    case(GCP, "head_start_ray_commands", DELETE, "Ray's default opens the dashboard on 0.0.0.0"),
    start("--dashboard-host=0.0.0.0", "opens the dashboard", "--dashboard-host=0.0.0.0"),
    start("--dashboard-host 10.0.0.5", "opens the dashboard", "--dashboard-host=10.0.0.5"),
    start("--dashboard-host=127.0.0.1 --dashboard-host=::", "opens the dashboard", "--dashboard-host=::"),
    setup("true\nbash -c 'sudo /x/ray start --dashboard-host=0.0.0.0'", "--dashboard-host=0.0.0.0", "opens"),
    port("opens port 8265 to the whole internet"),
    port("opens port 10001 to the whole internet", first=10001, last=10001),
    port("opens ports 22-10001 to", first=22, last=10001),
    port("opens all ports to", first=22, last=22, protocol="-1"),
    port("opens port 22 to", first=22, last=22, protocol="udp"),
    port("opens port 8265 to addresses of the internet", "0.0.0.0/1"),
    port("opens port 8265 to addresses of the internet", "203.0.113.0/24"),
    port("opens port 8265 to", "10.0.0.1-10.0.0.9"),
    case(AWS, PERMISSIONS, [{"Ipv6Ranges": [{"CidrIpv6": "::/0"}]}], "opens all ports to the whole internet",
         at=f"{PERMISSIONS}[0]", shown="::/0"),
    case(CLUSTER, "spec.headGroupSpec.serviceType", "LoadBalancer", "opens the dashboard, client and GCS"),
    case(CLUSTER, "spec.headGroupSpec.headService", {"spec": {"type": "NodePort"}}, "client and GCS outside",
         at="spec.headGroupSpec.headService.spec.type", shown="NodePort"),
    case(CLUSTER, "spec.headGroupSpec.headService", {"spec": {"externalIPs": ["203.0.113.1"]}}, "client and",
         at="spec.headGroupSpec.headService.spec.externalIPs", shown=["203.0.113.1"]),
    case(CLUSTER, "spec.headGroupSpec.enableIngress", True, "opens the dashboard"),
    case(CLUSTER, "kind", "Ingress", "outside the Kubernetes cluster"),
    case(CLUSTER, f"{HEAD_POD}.hostNetwork", True, "opens Ray's ports"),
    pod("hostNetwork", True, "opens Ray's ports"),
    pod("containers[0].ports", [{"containerPort": 8265, "hostPort": 8265}], "opens Ray's ports",
        at="[0].hostPort", shown=8265),
]  # fmt: skip
PINS = [
    case(AWS, "setup_commands", DELETE, "Ray's default installs a nightly wheel"),
    case(AWS, "head_setup_commands[0]", "pip install 'b>=1.4'", NOT_FIXED, shown="b>=1.4"),
    setup("pip install torch", "torch", NOT_FIXED),
    setup("pip -q install a==1 \\\n 'torch~=2.1'  # don't", "torch~=2.1", NOT_FIXED),
    setup("uv pip install 'torch==2.*'", "torch==2.*", NOT_FIXED),
    setup("uv add torch", "torch", NOT_FIXED),
    setup("conda install -y -c pytorch pytorch=2.13 numpy", "numpy", NOT_FIXED),
    setup("pip install git+https://y/z@main", "git+https://y/z@main", NOT_FIXED),
    setup("x || (pip install -U -c f 'ray @ https://y/ray-wheels/latest/z.whl')",
          "ray @ https://y/ray-wheels/latest/z.whl", "is a nightly build"),
    setup("pip install -i https://y/nightly/cpu a==1", "https://y/nightly/cpu", "offers nightly builds"),
    setup("uv pip install --pre x==1", "--pre", "installs pre-releases"),
    setup("python -m pip install 'ray[default]==2.9.0'", "ray[default]==2.9.0", "is not the Ray that launch"),
    case(JOB, "spec.entrypoint", "pip install torch; python jobs/train_mnist.py", NOT_FIXED, shown="torch"),
    case(JOB, "spec.runtimeEnvYAML", "pip: [torch]", NOT_FIXED, at="spec.runtimeEnvYAML.pip[0]",
         shown="torch"),
    pod("containers[0].command", ["pip", "install", "torch"], NOT_FIXED, shown="torch"),
    pod("containers[0].args", ["pip install torch && ray start"], NOT_FIXED, shown="torch"),
    image("rayproject/ray:latest", "is another image tomorrow"),
    image("host:5000/ray", "is another image tomorrow"),
    image("me/ray:main", "is another image tomorrow"),
    image("rayproject/ray:2.9.0-py311", "is not that of Ray 2.60.0"),
    case(AWS, "available_node_types.gpu_spot.docker", {"worker_image": "me/ray"}, "is another image tomorrow",
         at="available_node_types.gpu_spot.docker.worker_image", shown="me/ray"),
    case(CLUSTER, "spec.rayVersion", "2.59.0", "is not that of Ray 2.59.0",
         at=f"{HEAD_POD}.containers[0].image", shown=IMAGE),
    pod("containers[0].image", "rayproject/ray:nightly", "is another image tomorrow"),
    pod("containers[0].image", "rayproject/ray:2.59.0", "is not that of Ray 2.60.0"),
    pod("initContainers", [{"name": "x", "image": "busybox"}], "is another image tomorrow", at="[0].image",
        shown="busybox"),
]  # fmt: skip
SECRETS = [
    *[
        case(AWS, "setup_commands[0]", command, SECRET, shown="...")
        for command in (
            "export AWS_SECRET_ACCESS_KEY=abc", "export WANDB_API_KEY='abc'", "login --password abc",
            "git clone https://me:abc@example.org/x", "curl -H 'Authorization: Bearer abcdefgh'",
            "echo AKIAABCDEFGHIJKLMNOP", "echo hf_abcdefghijklmnop", "echo '-----BEGIN RSA PRIVATE KEY-----'",
        )
    ],
    case(AWS, "provider.aws_credentials", {"aws_secret_access_key": "abc"}, SECRET,
         at="provider.aws_credentials.aws_secret_access_key", shown="..."),
    pod("containers[0].env", [{"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}],
        "holds AWS_SECRET_ACCESS_KEY in clear", at="[0].value", shown="..."),
    case(JOB, "spec.runtimeEnvYAML", "env_vars: {HF_TOKEN: abc}", SECRET,
         at="spec.runtimeEnvYAML.env_vars.HF_TOKEN", shown="..."),
    case(JOB, "kind", "Secret", SECRET, at="data", shown="..."),
]  # fmt: skip
PRIVILEGES = [
    *[pod(f"{key}", True, PRIVILEGED) for key in ("hostPID", "hostIPC")],
    pod("volumes", [{"name": "x", "hostPath": {"path": "/"}}], PRIVILEGED, at="[0].hostPath",
        shown={"path": "/"}),
    *[
        pod("containers[0].securityContext", {key: True}, PRIVILEGED, at=f".{key}", shown=True)
        for key in ("privileged", "allowPrivilegeEscalation")
    ],
    pod("containers[0].securityContext", {"capabilities": {"add": ["SYS_ADMIN"]}}, PRIVILEGED,
        at=".capabilities.add", shown=["SYS_ADMIN"]),
    pod("initContainers", [{"name": "x", "image": "a:1.0", "securityContext": {"privileged": True}}],
        PRIVILEGED, at="[0].securityContext.privileged", shown=True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "place", "value", "field", "shown", "rule"),
    [*VALIDATORS, *FIELDS, *TOKEN, *PORTS, *PINS, *SECRETS, *PRIVILEGES],
)
def test_a_broken_file_is_seen_with_field_and_value(
    name, place, value, field, shown, rule, broken: Break
) -> None:
    path = broken(name, place, value)
    if value == "Secret":
        path.write_text(path.read_text() + "data: {auth_token: YWJj}\n")
    shown = str(path) if shown == "PATH" else shown
    lines = [str(problem) for problem in check_file(path)]
    assert [line for line in lines if line.startswith(f"{field}={shown!r}: ") and rule in line], lines
    assert all("\n" not in line and "\x1b" not in line for line in lines)


WORLD, KEY = [{"CidrIp": "0.0.0.0/0"}], {"name": "huggingface", "key": "token"}


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        *[
            (AWS, "setup_commands[1]", command)
            for command in (
                "export WANDB_API_KEY=$KEY X=\"$(cat ~/.token)\" RAY_AUTH_TOKEN_PATH=~/.ray/auth_token",
                "docker login --password-stdin",
                "pip install -r requirements.txt ./x 'ray[default]==2.60.0' 'a==1.2; python_version > \"3\"'",
                "pip install git+https://y/z@0123456789abcdef https://y/a-1.0-py3-none-any.whl",
                "conda install -y -c pytorch pytorch=2.13",
                "echo done  # don't pip install torch",
            )
        ],
        (AWS, PERMISSIONS, [{"FromPort": 22, "ToPort": 22, "IpProtocol": "tcp", "IpRanges": WORLD}]),
        (AWS, PERMISSIONS, [{"FromPort": -1, "ToPort": -1, "IpProtocol": "icmp", "IpRanges": WORLD}]),
        (AWS, PERMISSIONS, [{"IpProtocol": "-1", "IpRanges": [{"CidrIp": "10.0.0.0/16"}]}]),
        (AWS, PERMISSIONS, [{"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": "sg-1"}]}]),
        (AWS, "docker", {"image": f"rayproject/ray@sha256:{64 * 'a'}", "container_name": "ray"}),
        (CLUSTER, f"{POD}.securityContext", {"runAsNonRoot": True}),
        (CLUSTER, f"{POD}.containers[0].securityContext", {"capabilities": {"drop": ["ALL"]}}),
        (CLUSTER, f"{POD}.containers[0].env", [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": KEY}}]),
    ],
)  # fmt: skip
def test_the_right_form_passes(name: str, place: str, value: Any, broken: Break) -> None:
    assert [str(problem) for problem in check_file(broken(name, place, value))] == []


def test_own_policy_has_at_most_250_lines(repo: Path) -> None:
    files = [repo / "capsdist/clusters" / name for name in ("access.py", "pins.py", "credentials.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 250
