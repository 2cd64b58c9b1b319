"""Say what a training takes on a number of devices, before any is paid for: capsdist plan PRESET --gpus 8."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

from capsdist.cli.job import parse_options
from capsdist.cli.old_options import with_new_names
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
    argv = with_new_names(argv)
    config, command = parse_options(
        "Plan a training: memory, FLOP, communication and time of every way to run it.",
        list(PRESETS), None, argv, more={"planned": Planned()}, flat=True,
    )  # fmt: skip
    asked: Planned = command.planned
    given = _given(argv)
    _check(asked, given, config)
    config = fitted_if_packed(config)
    if command.print_config:
        from capsdist.config.as_yaml import to_yaml

        print(to_yaml(config), end="")
        return DONE
    train = config.train.model_copy(update={"num_workers": asked.gpus})
    config = config.model_copy(update={"train": train})
    if found := problems(config):
        raise ConfigError(found)
    if find_family(config.model.kind).cost is None:
        raise RunError(
            f"model.kind={config.model.kind!r}: the family has no function `cost`, which plans need; "
            "measure a few steps with: capsdist train ... --train.dry-run 5"
        )
    if command.check:
        print("configuration is valid")
        return DONE
    return _print(config, asked, given, _words(argv, config))


def _given(argv: Sequence[str]) -> set[str]:
    """Return the names of the options of a command line, as fields: "train.zero_stage"."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}


def _check(asked: Planned, given: set[str], config: Config) -> None:
    """Refuse numbers that no device has, and options of training that the plan has others for.

    Raises:
        ConfigError: naming all of them.
    """
    found = []
    for name, value in asdict(asked).items():
        if not (value > 0 and math.isfinite(value)) and not (name.startswith("price") and math.isnan(value)):
            found.append(Problem(name, value, "must be above 0", f"set --{name.replace('_', '-')}"))
    for name, value, remedy in (
        ("train.num_workers", config.train.num_workers, "give the number of devices with --gpus"),
        (
            "train.gradient_accumulation_steps",
            config.train.gradient_accumulation_steps,
            "bound the images of a microbatch with --train.microbatch-size",
        ),
    ):
        if name in given:
            found.append(Problem(name, value, "is what a plan chooses", remedy))
    if asked.gpus > (batch := config.train.global_batch_size):
        rule = f"is more than the {batch} images of a step"
        found.append(Problem("gpus", asked.gpus, rule, "set fewer --gpus or raise --train.global-batch-size"))
    if found:
        raise ConfigError(found)


def _words(argv: Sequence[str], config: Config) -> str:
    """Return preset and options of the command line for `capsdist train`, without those of the plan."""
    from capsdist.planning.plan import CHOSEN

    names = [*(each.name for each in fields(Planned)), *CHOSEN]  # a row says what is chosen
    own = {f"--{name.replace('_', '-')}" for name in names}
    kept, skip = [], False
    for word in argv:
        name, given, _ = word.replace("_", "-").partition("=")
        if not skip and name not in own:
            kept.append(word)
        skip = not skip and name in own and not given
    if kept[:1] == ["--preset"]:
        kept = kept[1:]
    return shlex.join(kept or [config.preset])


def _print(config: Config, asked: Planned, given: set[str], words: str) -> int:
    """Print the plan; return the exit status.

    Raises:
        RunError: nothing fits, or nothing is as the options ask for.
    """
    from capsdist.planning.plan import CHOSEN, Device, cheapest, command, plan_rows
    from capsdist.planning.words import heading, lacking, table

    numbers = asdict(asked)
    device = Device(**{each.name: numbers[each.name] for each in fields(Device) if each.name in numbers})
    price = None if math.isnan(asked.price_per_gpu_hour) else asked.price_per_gpu_hour
    pinned = [name for name in CHOSEN if name in given]
    rows = list(plan_rows(config, device, asked.gpus, pinned))
    if not rows:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in pinned)
        raise RunError(f"no way to train is as {options} ask together; leave one out")
    print("\n".join([*heading(config, device, rows[0]), "", *table(rows, price)]))
    best = cheapest(rows)
    if best is None:
        raise RunError(lacking(rows, device))
    note = "projected"
    if best.setup.capsule_ranks > 1 and config.train.device != "cpu":
        note += "; capsule ranks have run on CPUs only, --train.capsule-ranks 1 plans without them"
    print(f"\ncheapest that fits ({note}):\n{command(best, words)}")
    return DONE
