"""Say what a training takes on a number of devices, before any is paid for: capsdist plan PRESET --gpus 8."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from capsdist.cli.job import parse_options
from capsdist.config import PRESETS, Config, problems
from capsdist.config.models import find_family
from capsdist.console import DONE
from capsdist.errors import ConfigError, Problem, RunError
from capsdist.launch.as_data import fitted_if_packed

__all__ = ["Planned", "plan"]


@dataclass(frozen=True)
class Planned:
    """Devices to plan for. Ceilings are those of an NVIDIA H100 SXM's data sheet, dense, unless given."""

    gpus: int = 1
    """Devices, one rank each."""
    memory_gib: float = 80.0
    """Memory of a device."""
    price_per_gpu_hour: float = math.nan
    """Price of a device for an hour, in any currency; without it devices are compared by their seconds."""
    peak_tflops: float = 989.0
    """10^12 FLOP a second of 16-bit products."""
    peak_tflops_fp32: float = 67.0
    """10^12 FLOP a second of fp32 products."""
    memory_bandwidth_gb_s: float = 3350.0
    """10^9 bytes a second of a device's memory."""
    interconnect_gb_s: float = 450.0
    """10^9 bytes a second that a device sends to others."""


def plan(argv: Sequence[str]) -> int:
    """Parse a command line, print the plan and the cheapest command; return the exit status.

    Raises:
        ConfigError: an invalid configuration, or numbers that no device has.
        RunError: nothing fits, or the family has no function `cost`.
    """
    config, command = parse_options(
        "Plan a training: memory, FLOP, communication and time of every way to run it.",
        list(PRESETS), None, argv, more={"planned": Planned()}, flat=True,
    )  # fmt: skip
    asked: Planned = command.planned
    _check(asked)
    config = fitted_if_packed(config)
    train = config.train.model_copy(update={"num_workers": asked.gpus})
    config = config.model_copy(update={"train": train})
    if found := problems(config):
        raise ConfigError(found)
    if find_family(config.model.kind).cost is None:
        raise RunError(
            f"model.kind={config.model.kind!r}: the family has no function `cost`, which plans need; "
            "measure a few steps with: capsdist train ... --train.dry-run 5"
        )
    return _print(config, asked, _words(argv, config))


def _check(asked: Planned) -> None:
    """Refuse numbers that no device has.

    Raises:
        ConfigError: naming all of them.
    """
    found = []
    for name, value in asdict(asked).items():
        if not (value > 0 and math.isfinite(value)) and not (name.startswith("price") and math.isnan(value)):
            found.append(Problem(name, value, "must be above 0", f"set --{name.replace('_', '-')}"))
    if found:
        raise ConfigError(found)


def _words(argv: Sequence[str], config: Config) -> str:
    """Return preset and options of the command line for `capsdist train`, without those of the plan."""
    own = {f"--{each.name.replace('_', '-')}" for each in fields(Planned)}
    kept, skip = [], False
    for word in argv:
        name, given, _ = word.replace("_", "-").partition("=")
        if not skip and name not in own:
            kept.append(word)
        skip = not skip and name in own and not given
    if kept[:1] == ["--preset"]:
        kept = kept[1:]
    return shlex.join(kept or [config.preset])


def _print(config: Config, asked: Planned, words: str) -> int:
    """Print the plan; return the exit status.

    Raises:
        RunError: nothing fits.
    """
    from capsdist.planning.plan import Device, cheapest, command, plan_rows
    from capsdist.planning.words import heading, lacking, table

    numbers = asdict(asked)
    device = Device(**{each.name: numbers[each.name] for each in fields(Device) if each.name in numbers})
    price = None if math.isnan(asked.price_per_gpu_hour) else asked.price_per_gpu_hour
    rows = list(plan_rows(config, device, asked.gpus))
    print("\n".join([*heading(config, device, rows[0]), "", *table(rows, price)]))
    best = cheapest(rows)
    if best is None:
        raise RunError(lacking(rows, device))
    print(f"\ncheapest that fits (projected):\n{command(best, words)}")
    return DONE
