"""A search whose data and storage are on S3, on a real Ray: found again by its name, its secret nowhere."""

from __future__ import annotations

import json

import pytest
from job_helpers import TINY_FLAGS, run_job_file, write_tiny
from places import Place
from planted import holding

pytestmark = pytest.mark.s3
FLAGS = [
    *TINY_FLAGS, "--train.name=search", "--train.num-workers=1", "--train.device=cpu", "--train.epochs=2",
    "--search.scheduler=none", "--space.class-dim", "3", "5",
]  # fmt: skip


def test_a_search_lies_on_s3_and_is_found_there_again(place: Place, env, tmp_path, short_tmp):
    write_tiny(env["CAPSDIST_DATA_ROOT"])
    done = run_job_file("tune_routing.py", *FLAGS, cwd=tmp_path, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert f"plots: {place.url}/runs/search/search.png" in lines
    assert lines[-2].endswith(f"capsdist train --config {place.url}/runs/search/best.yaml")
    assert f"storage: {place.url}/runs\n".encode() in place.objects("runs/search/")["runs/search/best.yaml"]

    objects = place.objects()
    names = {name.removeprefix("runs/search/") for name in objects if name.startswith("runs/search/")}
    assert names >= {
        "journal.jsonl",
        "search.json",
        "result.json",
        "search.png",
        "trials/trial-01/result.json",
    }
    assert ".lock" not in names
    result = json.loads(objects["runs/search/result.json"])
    assert [trial["status"] for trial in result["trials"]] == ["finished"] * 2
    assert all(trial["images_per_s"] > 0 for trial in result["trials"])  # of the runs' metrics, there too

    again = run_job_file("tune_routing.py", *FLAGS, cwd=tmp_path, env=env)
    assert (again.returncode, again.stderr) == (0, "")
    assert again.stdout.splitlines()[0] == "search search is done already"
    assert again.stdout.splitlines()[1:] == lines[-len(again.stdout.splitlines()) + 1 :]

    (tmp_path / "printed").write_text(done.stdout + again.stdout)
    assert any(short_tmp.rglob("*.log"))  # Ray's logs are searched as well
    assert holding(place.server.full.secret_key, [tmp_path, short_tmp], objects) == []
