"""The command line of the training jobs: preset, typed overrides, `--check`, launch, exit status.

Neither torch nor Ray is imported before a configuration is valid, so that a typing error costs a
fraction of a second.

Exit status: 0 the run finished (or `--check` found the configuration valid); 1 it failed, or data, storage or
a checkpoint cannot be used; 2 the configuration is invalid or does not fit this machine or the run that it
names; 130 Ctrl-C, SIGTERM or SIGHUP stopped it, after a last checkpoint. A job of `ray job submit` has only 0
and 1; the run's result.json tells "done", "stopped" and "failed" apart.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, make_dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from capsdist.cli.check import check_config
from capsdist.cli.config_files import overlaid, read_values
from capsdist.cli.flags import with_flags
from capsdist.cli.further import measure_further
from capsdist.cli.old_options import with_new_names
from capsdist.cli.pages import leave_pages
from capsdist.cli.smoke import SmokeOptions, check_left, smoke_config
from capsdist.config import PRESETS, Config, NetworkConfig, get_preset
from capsdist.config.models import find_family
from capsdist.console import DONE, STOPPED, run_program
from capsdist.errors import CapsdistError, ConfigError, Problem
from capsdist.launch.as_data import fitted, fitted_if_packed
from capsdist.launch.preflight import absolute
from capsdist.runs.rundir import run_place

__all__ = ["file_values", "parse_command", "parse_options", "run_job", "with_environment"]


def run_job(
    description: str | None,
    presets: Sequence[str],
    default: str | None = None,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse a command line, check or launch the run, print errors as one line each; return the exit status.

    `presets` are those that the job offers, `default` (else the first) is taken without `--preset`.

    Example:
        >>> sys.exit(run_job(__doc__, ["mnist_paper", "mnist_official"]))
    """

    def run_command() -> int:
        arguments = sys.argv[1:] if argv is None else argv
        more = {"options": SmokeOptions()}
        config, command = parse_options(description, presets, default, arguments, more=more, flat=True)
        if command.print_config:
            from capsdist.config.as_yaml import to_yaml

            print(to_yaml(fitted_if_packed(config)), end="")
            return DONE
        if command.options.smoke:
            return _smoke(config, check=command.check)
        config = fitted(config)
        return check_config(config) if command.check else _train_and_draw(config)

    return run_program(run_command)


def parse_command(
    description: str | None, presets: Sequence[str], default: str | None, argv: Sequence[str]
) -> tuple[Config, bool]:
    """Return the configuration that a command line means, unchecked, and whether `--check` was given.

    Raises:
        ConfigError: an unknown preset, or a `--config` file that cannot be read.
        SystemExit: after `--help` (0), or an unknown or mistyped option (2), which is explained.
    """
    config, command = parse_options(description, presets, default, argv)
    return config, command.check


def parse_options(
    description: str | None,
    presets: Sequence[str],
    default: str | None,
    argv: Sequence[str],
    *,
    more: Mapping[str, object] | None = None,
    flat: bool = False,
    name_prefix: str = "",
    values: Mapping[str, Any] | None = None,
) -> tuple[Config, Any]:
    """As `parse_command`, for a job with sections of options of its own; return them as attributes.

    `more`: these sections with their default values, by name; with `flat` their options have no prefix;
    `name_prefix` stands before the name of the run that the preset or file gives; `values`: what is laid over
    the preset in place of the file of `--config`.
    """
    import tyro

    more = more or {}
    argv = with_new_names(argv)
    values = file_values(argv) if values is None else values
    base = _base(presets, default or presets[0], _option(argv, "--preset"), values)
    base = overlaid(_of_family(base, _kind(values)), values)
    base = _of_family(base, _option(argv, "--model.kind"))
    train = base.train.model_copy(update={"name": name_prefix + base.train.name})
    base = base.model_copy(update={"train": train})
    title = (description or "Train a network.").strip().splitlines()[0]
    command = tyro.cli(
        _command_type(presets, base.preset if base.preset in presets else presets[0], base, more, flat),
        args=with_flags(argv, base),
        prog=Path(sys.argv[0]).name,
        description=f"{title}\n\n{_describe(presets)}",
    )
    sections = {section: getattr(command, section) for section in _sections()}
    return Config(preset=base.preset, **sections), command


def file_values(argv: Sequence[str]) -> dict[str, Any]:
    """Return the values in the file that `--config` names; none without it.

    Raises:
        ConfigError: it cannot be read.
    """
    file = _option(argv, "--config")
    return read_values(file) if file else {}


def _base(presets: Sequence[str], default: str, asked: str | None, values: Mapping[str, Any]) -> Config:
    """Return the preset that a command starts from: `--preset`, else that of the file, else the default."""
    own = Config().preset
    stored = values.get("preset", own)
    if asked and stored not in (asked, own):
        rule = f"stands beside a configuration file of preset {stored!r}"
        raise ConfigError([Problem("preset", asked, rule, "leave it out, or take `preset` out of the file")])
    if stored == own and not asked and "preset" in values:  # made by hand
        return with_environment(Config())
    return with_environment(get_preset(_offered(asked or (default if stored == own else stored), presets)))


def _kind(values: Mapping[str, Any]) -> str | None:
    model = values.get("model")
    kind = model.get("kind") if isinstance(model, Mapping) else None
    return kind if isinstance(kind, str) else None


def _of_family(base: Config, kind: str | None) -> Config:
    """Return `base` with the defaults of the family `kind`, for images and classes as they are in `base`."""
    if kind is None or kind == base.model.kind:
        return base
    family = find_family(kind)
    shared = {name: getattr(base.model, name) for name in NetworkConfig.model_fields if name != "kind"}
    return base.model_copy(
        update={
            "model": family.model(**shared, kind=kind),
            "routing": family.routing(),
            "loss": family.loss(),
        }
    )


def _offered(preset: str, presets: Sequence[str]) -> str:
    if preset not in presets:
        fix = f"choose one of {', '.join(presets)}"
        raise ConfigError([Problem("preset", preset, "is not a preset of this job", fix)])
    return preset


def with_environment(config: Config) -> Config:
    """Return `config` with data root and storage that CAPSDIST_DATA_ROOT and CAPSDIST_STORAGE name, if set.

    A cluster sets them on its nodes. They are defaults: options of the command line win.
    """
    data, train = config.data, config.train
    if root := os.environ.get("CAPSDIST_DATA_ROOT"):
        data = data.model_copy(update={"root": root})
    if storage := os.environ.get("CAPSDIST_STORAGE"):
        train = train.model_copy(update={"storage": storage})
    return config.model_copy(update={"data": data, "train": train})


def _command_type(
    presets: Sequence[str], preset: str, base: Config, more: Mapping[str, object], flat: bool
) -> Any:
    """Return a dataclass of the job's own options and, below them, the sections of a configuration."""
    import tyro

    def option(name: str, kind: Any, default: Any, help_text: str) -> tuple[str, Any, Any]:
        return name, Annotated[kind, tyro.conf.arg(help=help_text)], field(default=default)

    own = [
        option("preset", Literal[tuple(presets)], preset, "Named configuration to start from."),
        option("config", Path | None, None, "YAML or JSON file, whole or partial, laid over the preset."),
        option(
            "check",
            tyro.conf.FlagCreatePairsOff[bool],
            False,
            "Check the configuration, print every problem, and train nothing.",
        ),
        option(
            "print_config",
            tyro.conf.FlagCreatePairsOff[bool],
            False,
            "Print the resolved configuration as YAML with its comments, and train nothing.",
        ),
    ]
    sections = [(name, type(getattr(base, name)), field(default=getattr(base, name))) for name in _sections()]
    others: list[tuple[str, Any, Any]] = [
        (name, tyro.conf.OmitArgPrefixes[type(value)] if flat else type(value), field(default=value))
        for name, value in more.items()
    ]
    return make_dataclass("Command", own + others + sections)


def _sections() -> list[str]:
    return [name for name in Config.model_fields if name != "preset"]


def _describe(presets: Sequence[str]) -> str:
    lines = [f"  {name}: {(PRESETS[name].__doc__ or '').strip()}" for name in presets]
    return "\n".join(["Presets:", *lines])


def _option(argv: Sequence[str], name: str) -> str | None:
    """Return the last value of `--name VALUE` or `--name=VALUE`: the defaults of the rest depend on it."""
    value = None
    for word, after in pairwise([*argv, None]):
        if word == name:
            value = after
        elif word and word.startswith(name + "="):
            value = word.partition("=")[2]
    return value


def _smoke(config: Config, *, check: bool) -> int:
    """Train a smoke run of `config`, or check it; what it has left is looked at before it goes."""
    with smoke_config(config) as small:
        small = fitted(small)
        if check:
            return check_config(small)
        status = _train_and_draw(small)
        if status == DONE:
            check_left(small)
            steps, images = small.train.max_steps, small.train.global_batch_size
            print(f"smoke: {config.preset} works; {steps} steps of {images} images, no result")
    return status


def _train_and_draw(config: Config) -> int:
    from capsdist.launch import launch
    from capsdist.launch.signals import StopSignals
    from capsdist.train.display import Display

    with Display() as display:
        rows = _HoldEnd(display)
        leave = functools.partial(_leave_pages, config, display, rows)
        try:
            summary = launch(config, display=rows)
        except CapsdistError:
            leave(done=False)
            raise
        done = summary.status == "done"
        with StopSignals():
            leave(done=done)
            if done and not config.train.dry_run:
                measure_further(config, display, anew=rows.trained)
        if config.train.dry_run:
            return DONE if done else STOPPED
        if done:
            if rows.end is not None:
                display(rows.end)
            return DONE
    print(f"stopped: the same command goes on from step {summary.steps:,}", file=sys.stderr)
    return STOPPED


class _HoldEnd:
    """Shows rows but keeps the last one back, so that its lines come last: below those of the picture."""

    def __init__(self, show: Callable[[dict[str, Any]], None]) -> None:
        self._show = show
        self.end: dict[str, Any] | None = None
        self.trained = False

    def __call__(self, row: dict[str, Any]) -> None:
        self.trained |= row["kind"] == "start"
        if row["kind"] == "end":
            self.end = row
        else:
            self._show(row)


def _leave_pages(
    config: Config, display: Callable[[dict[str, Any]], None], rows: _HoldEnd, *, done: bool
) -> None:
    """Leave the pages of a run that is done, or has trained; those of the latter show no images."""
    if config.train.dry_run or not (done or rows.trained):
        return
    place, picture = run_place(absolute(config)), done and bool(config.data.name)
    leave_pages(place, display, anew=rows.trained, images=done, picture=picture)
