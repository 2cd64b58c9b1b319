"""`check-cluster` as a whole: all problems at once, secrets kept, damaged files, the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import ray.autoscaler
from breaking import Break

import capsdist
from capsdist.clusters import check_file, placeholders, pods, unchecked

AWS, GCP, ONPREM = "aws-gpu.yaml", "gcp-gpu.yaml", "onprem.yaml"
CLUSTER, JOB = "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"
IMAGE = "YOUR-REGISTRY/capsdist:2.60.0-py311-capsdist0.1.0"
POD = "spec.workerGroupSpecs[0].template.spec"


def test_rays_own_defaults_for_aws_have_many_problems(home: Path) -> None:
    found = check_file(Path(ray.autoscaler.__file__).with_name("aws") / "defaults.yaml")
    assert {problem.field for problem in found} == {
        "file_mounts",
        "setup_commands[1]",  # a nightly wheel
        "head_setup_commands[0]",
        "head_start_ray_commands[1]",  # a public dashboard
        "setup_commands",  # no token
    }


def test_all_problems_are_reported_at_once(broken: Break) -> None:
    path = broken(AWS, "available_node_types.head.node_config", {"InstanceTyp": "m5.large"})
    path.write_text(path.read_text().replace("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"))
    fields = [problem.field for problem in check_file(path)]
    assert set(fields) == {
        "available_node_types.head.node_config.InstanceTyp",
        "head_start_ray_commands[1]",
    }


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
    assert check_file(broken(AWS, "available_node_types.head.resources", {1: "x"}))
    assert check_file(broken(CLUSTER, "spec", []))
    assert check_file(broken(CLUSTER, "kind", [None]))


def test_a_missing_validator_is_named(repo: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(pods, "can_validate", lambda: False)
    assert unchecked(repo / "cluster" / AWS) == []
    [sentence] = unchecked(repo / "cluster" / JOB)
    assert "pip install kubernetes-validate" in sentence
    assert check_file(repo / "cluster" / JOB) == []


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
