"""Check every shard of packed data sets, on disk or on S3: index, sizes, xxh3, sha256, labels."""

from __future__ import annotations

from capsdist.cli.verify import verify
from capsdist.data.sets.pack import run_command

if __name__ == "__main__":
    run_command(verify)
