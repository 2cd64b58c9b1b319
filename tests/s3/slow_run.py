"""A driver whose steps take a while, so that it can be killed between two of them: DATA STORAGE NAME."""

from __future__ import annotations

import sys

from job_helpers import Slow, tiny_config

from capsdist.launch import launch

if __name__ == "__main__":
    launch(tiny_config(*sys.argv[1:], cores=0), fault=Slow(0.5))
