"""`make cluster-drill`: cluster/onprem.yaml for real, from `ray up` to a trained network and `ray down`.

Four hosts out of namespaces: a laptop that launches, a head, and two workers with sshd. The file is the
shipped one with the addresses and the user filled in. The machines have Python and the packages already
(~/.capsdist), for they have no way to the internet; everything else of the file happens as it stands there.

Needs root, openssh-server, openssh-client and rsync. Prints a line per step; ends with 0 if all was well.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "multihost"))
from hosts import ROOT, Host, Lab, start_ssh, unavailable

from capsdist.bench.record import write_record

UP = "RAY_UP_enable_autoscaler_v2=0 ray up -y --no-config-cache ~/cluster.yaml"
JOB = (
    "jobs/train_mnist.py --data.name digits --train.name drill --train.num-workers 2 --train.device cpu"
    " --train.precision fp32 --train.max-steps 6 --train.global-batch-size 16 --model.conv-channels 8"
    " --model.primary-types 2"
)
CLIENT = {"RAY_AUTH_MODE": "token", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265"}
started = time.monotonic()
said: list[str] = []


def main() -> int:
    """Run the drill; return the exit status."""
    if reason := unavailable(ssh=True):
        print(f"error: the cluster drill {reason}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="drill-") as folder:
        shared = Path(folder)
        with Lab(["head", "one", "two", "laptop"], keep=[shared]) as lab:
            *nodes, laptop = lab.hosts
            prepare(shared, nodes, laptop)
            bring_up(nodes, laptop)
            train(shared, nodes, laptop)
            take_down(nodes, laptop)
    log("the drill is over: all was well")
    if sys.argv[1:] == ["--record"]:
        figures, text = {"whole_s": round(time.monotonic() - started, 1)}, "\n".join(said) + "\n"
        config = {"file": "cluster/onprem.yaml", "job": JOB}
        print(write_record(ROOT / "jobs/records", "cluster-drill", config=config, figures=figures, log=text))
    return 0


def prepare(shared: Path, nodes: list[Host], laptop: Host) -> None:
    """Make the machines what the file expects: sshd, Python, a shared folder; on the laptop token and key."""
    laptop.run(f"python {ROOT}/data_prep/pack_digits.py --root {shared}/data")
    laptop.run("mkdir -m 700 .ssh; ssh-keygen -q -t ed25519 -N '' -f .ssh/id_ed25519")
    laptop.run(
        "mkdir .ray; install -m 600 /dev/null .ray/auth_token; "
        "python -c 'import secrets; print(secrets.token_hex(32))' > .ray/auth_token"
    )
    key = laptop.run("cat .ssh/id_ed25519.pub")
    for node in nodes:
        start_ssh(node, key)
        node.run(f"ln -s {sys.prefix} .capsdist")
        node.run(f"mount -t tmpfs tmpfs /mnt && mkdir /mnt/capsdist && mount --bind {shared} /mnt/capsdist")
    text = (ROOT / "cluster/onprem.yaml").read_text().replace("YOUR-USER", "root")
    text = re.sub(r"192\.0\.2\.(\d)", lambda found: nodes[int(found[1]) - 1].ip, text)
    (shared / "cluster.yaml").write_text(text)
    laptop.run(f"cp {shared}/cluster.yaml . && cd {ROOT} && python -m capsdist check-cluster ~/cluster.yaml")
    log("three machines answer to ssh, and check-cluster has no objection")


def bring_up(nodes: list[Host], laptop: Host) -> None:
    """`ray up`, until all machines are there; then what must be closed is closed."""
    laptop.run(f"cd {ROOT} && {UP}")
    log("ray up has set up the head")
    wait_until(lambda: cpus(laptop) is not None, "both workers joined", 120)
    log(f"both workers have joined: {cpus(laptop):g} CPUs")
    modes = {node.run("stat -c %a .ray/auth_token").strip() for node in nodes}
    expect(modes == {"600"}, "the token is private on every machine")
    dashboard = f"python -c 'import socket; socket.create_connection((\"{nodes[0].ip}\", 8265), 2)'"
    said = laptop.run(dashboard, check=False)
    expect("ConnectionRefusedError" in said, "the dashboard is on loopback only")
    jobs = "python -c 'import urllib.request as u; u.urlopen(\"http://127.0.0.1:8265/api/jobs/\")'"
    expect("HTTP Error 401" in nodes[0].run(jobs, check=False), "it asks for the token")


def train(shared: Path, nodes: list[Host], laptop: Host) -> None:
    """Submit a training job that needs both workers, from the laptop, through `ray dashboard`."""
    each = (cpus(laptop) or 0) / 2  # a rank takes a whole machine
    command = f"ray job submit -- python {JOB} --launch.cpus-per-worker {each:g}"
    with forwarded(shared, laptop):
        printed = laptop.run(command, env=CLIENT)
    [last] = re.findall(r"^error_percent .*", printed, flags=re.MULTILINE)
    log(f"the job has trained: {last}")
    run = shared / "runs" / "drill"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expect([row["world_size"] for row in rows if row["kind"] == "start"] == [2], "it had two workers")
    result = json.loads((run / "result.json").read_text())
    expect(result["status"] == "done", "its result is in the shared folder")
    for node in nodes[1:]:
        logs = node.run("ls /tmp/ray/session_latest/logs/train", check=False)
        expect(logs.count("ray-train-sys-worker-") == 1, f"{node.name} had one rank")


@contextlib.contextmanager
def forwarded(shared: Path, laptop: Host) -> Iterator[None]:
    """Hold `ray dashboard`, which forwards the head's port 8265 over ssh to the laptop's own."""
    with (shared / "dashboard.log").open("w") as output:
        laptop.start(f"cd {ROOT}; exec ray dashboard ~/cluster.yaml", output)
    port = "python -c 'import socket; socket.create_connection((\"127.0.0.1\", 8265), 1)' 2> /dev/null"
    laptop.run(f"until {port}; do sleep 0.5; done")
    yield
    laptop.run("pkill -f 'ray dashboard'", check=False)


def take_down(nodes: list[Host], laptop: Host) -> None:
    """`ray down`, and then what it leaves: the workers' Ray (README, "Stop")."""
    laptop.run(f"cd {ROOT} && RAY_UP_enable_autoscaler_v2=0 ray down -y ~/cluster.yaml")
    expect(raylets(nodes[0]) == "", "ray down has stopped the head")
    for node in nodes[1:]:
        laptop.run(f"ssh -o StrictHostKeyChecking=no root@{node.ip} \"bash -ic 'ray stop'\"")
    expect([raylets(node) for node in nodes] == [""] * len(nodes), "no Ray is left on any machine")


def raylets(node: Host) -> str:
    """The process numbers of the raylets on a host."""
    return node.run("pgrep -x raylet || true").strip()


def cpus(laptop: Host) -> float | None:
    """The CPUs of the cluster once both workers are in it, else None."""
    status = laptop.run(f"cd {ROOT} && ray exec ~/cluster.yaml 'ray status'", check=False)
    found = re.search(r"/([\d.]+) CPU", status)
    return float(found[1]) if found and "3 local" in status else None


def wait_until(met: Callable[[], bool], what: str, timeout_s: float) -> None:
    """Wait for `met`; end the drill if it does not come."""
    deadline = time.monotonic() + timeout_s
    while not met():
        if time.monotonic() > deadline:
            raise SystemExit(f"error: not within {timeout_s:g} s: {what}")
        time.sleep(1)


def expect(met: bool, what: str) -> None:
    """Say `what` was seen; end the drill if it was not."""
    if not met:
        raise SystemExit(f"error: not so: {what}")
    log(what)


def log(what: str) -> None:
    """Print a step with the seconds since the start."""
    said.append(f"{time.monotonic() - started:6.1f} s  {what}")
    print(said[-1], flush=True)


if __name__ == "__main__":
    sys.exit(main())
