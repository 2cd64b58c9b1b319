"""Measure the error of a checkpoint on a packed split.

Command: python jobs/evaluate.py runs/quickstart (its newest checkpoint on its own test split), or
    python jobs/evaluate.py s3://bucket/runs/quickstart/step_00000252 --split data/mnist/test
Needs neither Ray nor DeepSpeed. Expected time: under a minute for 10,000 digits on 2 CPU cores.
"""

from __future__ import annotations

import sys

from capsdist.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
