"""Commands: what the scripts in jobs/ share. Neither torch nor Ray is imported before they are needed."""

from __future__ import annotations

from capsdist.cli.check import check_config
from capsdist.cli.job import parse_command, parse_options, run_job, with_environment

__all__ = ["check_config", "parse_command", "parse_options", "run_job", "with_environment"]
