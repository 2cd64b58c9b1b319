"""The command `capsdist`: one word per task, each with its own `--help`.

Exit status: 0 done; 1 failed; 2 a wrong command line or configuration; 130 stopped by a signal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from capsdist import __version__
from capsdist.console import DONE, INVALID, run_program

__all__ = ["main"]


def _train(argv: Sequence[str]) -> int:
    """train a network: capsdist train PRESET [options]"""
    from capsdist.cli.job import run_job
    from capsdist.config import PRESETS

    if argv and not argv[0].startswith("-"):
        argv = ["--preset", *argv]
    return run_job("Train a network.", list(PRESETS), argv=argv)


def _tune(argv: Sequence[str]) -> int:
    """search over routing depth and capsule capacity: capsdist tune [options]"""
    from capsdist.cli.tune import tune

    return tune("Search over routing depth and capsule capacity with Ray Tune.", argv)


def _plan(argv: Sequence[str]) -> int:
    """say what a training takes, and the cheapest way: capsdist plan PRESET --gpus 8 [options]"""
    from capsdist.cli.plan import plan

    if argv and not argv[0].startswith("-"):
        argv = ["--preset", *argv]
    return plan(argv)


def _evaluate(argv: Sequence[str]) -> int:
    """measure the error of a run or checkpoint: capsdist evaluate RUN"""
    from capsdist.cli.evaluate import evaluate

    return _parsed(evaluate, "evaluate", argv)


def _compare(argv: Sequence[str]) -> int:
    """test whether two networks, or methods, differ: capsdist compare RUN RUN"""
    from capsdist.cli.compare import compare

    return _parsed(compare, "compare", argv)


def _predict(argv: Sequence[str]) -> int:
    """classify image files: capsdist predict RUN FILE..."""
    from capsdist.cli.predict import predict

    return _parsed(predict, "predict", argv)


def _export(argv: Sequence[str]) -> int:
    """write a network for other programs: capsdist export RUN --to FORMAT --output FOLDER"""
    from capsdist.cli.export import export

    return _parsed(export, "export", argv)


def _pack(argv: Sequence[str]) -> int:
    """make a packed data set of original files: capsdist pack NAME [options]"""
    from capsdist.data.sets.pack import pack_command
    from capsdist.data.sets.spec import DATASETS, find_dataset

    if not argv or argv[0].startswith("-"):
        names = "\n".join(f"  {name:<20} {find_dataset(name).title}" for name in DATASETS)
        print(f"usage: capsdist pack NAME [options]; NAME may be an import path of a DatasetSpec\n\n{names}")
        return DONE if argv and argv[0] in ("-h", "--help") else INVALID
    return pack_command(find_dataset(argv[0]), f"capsdist pack {argv[0]}", list(argv[1:]))


def _verify(argv: Sequence[str]) -> int:
    """check every shard of packed data sets: capsdist verify [FOLDER]"""
    from capsdist.cli.verify import verify

    return _parsed(verify, "verify", argv) or DONE


def _show(argv: Sequence[str]) -> int:
    """draw samples with and without augmentation: capsdist show SPLIT --ids 5 17 [--data. options]"""
    from capsdist.cli.show import show

    return show(argv)


def _index(argv: Sequence[str]) -> int:
    """make tar files of encoded images (webdataset) a readable data set: capsdist index FOLDER [options]"""
    from capsdist.cli.index import index

    return _parsed(index, "index", argv) or DONE


def _runs(argv: Sequence[str]) -> int:
    """list the runs in a folder: capsdist runs [FOLDER]"""
    from capsdist.cli.runs import runs

    return _parsed(runs, "runs", argv)


def _doctor(argv: Sequence[str]) -> int:
    """say what ails the capsule layers of a run, and what to change: capsdist doctor RUN"""
    from capsdist.cli.doctor import doctor

    return _parsed(doctor, "doctor", argv)


def _report(argv: Sequence[str]) -> int:
    """write report.html of runs, table.html of several, an interactive page: capsdist report RUN..."""
    from capsdist.cli.report import report

    return _parsed(report, "report", argv)


def _check_cluster(argv: Sequence[str]) -> int:
    """check cluster files before they cost money: capsdist check-cluster FILE..."""
    from capsdist.cli.check_cluster import check_cluster

    return _parsed(check_cluster, "check-cluster", argv)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "train": _train,
    "plan": _plan,
    "evaluate": _evaluate,
    "compare": _compare,
    "predict": _predict,
    "export": _export,
    "pack": _pack,
    "verify": _verify,
    "show": _show,
    "index": _index,
    "tune": _tune,
    "runs": _runs,
    "doctor": _doctor,
    "report": _report,
    "check-cluster": _check_cluster,
}
"""The commands by name; the first line of each docstring is its help text."""


def _parsed(function: Callable[..., Any], name: str, argv: Sequence[str]) -> Any:
    import tyro

    return tyro.cli(function, args=list(argv), prog=f"capsdist {name}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` (default: the process's arguments) names; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        sys.argv[0] = f"capsdist {words[0]}"  # the name that help texts print
        return run_program(lambda: COMMANDS[words[0]](words[1:]))
    if words == ["--version"]:
        print(f"capsdist {__version__}")
        return DONE
    lines = [f"  {name:<14} {function.__doc__}" for name, function in COMMANDS.items()]
    usage = "\n".join(
        ["usage: capsdist COMMAND ...", "", *lines, "", "capsdist COMMAND --help explains one."]
    )
    if words in ([], ["--help"], ["-h"]):
        print(usage)
        return DONE if words else INVALID
    print(f"error: {words[0]!r} is no command of capsdist\n{usage}", file=sys.stderr)
    return INVALID
