"""Print the number of live Ray nodes of a cluster whenever it changes, until killed; run beside the head.

python count_nodes.py http://127.0.0.1:8265 TOKEN_FILE
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from pathlib import Path


def count(address: str, token: str) -> int:
    """Return how many nodes the dashboard at `address` holds for alive."""
    headers = {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{address}/nodes?view=summary", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        nodes = json.load(answer)["data"]["summary"]
    return sum(node["raylet"]["state"] == "ALIVE" for node in nodes)


def main(address: str, token_file: str) -> None:
    """See the module."""
    token, before = Path(token_file).read_text(), -1
    while True:
        try:
            now = count(address, token)
        except OSError:  # the dashboard is still starting, or busy
            now = before
        if now != before:
            print(now, flush=True)
        before = now
        time.sleep(0.3)


if __name__ == "__main__":
    main(*sys.argv[1:])
