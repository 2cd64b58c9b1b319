"""The rows of the paper's experiments in the table of test errors, and Table 1 as the paper has it."""

from __future__ import annotations

from capsdist.bench.aims import Row, most
from capsdist.config.presets.mnist_ablation import ABLATIONS

__all__ = ["PAPER_ROWS", "TABLE_1"]

TABLE_1: dict[tuple[str, str], tuple[float, float | None] | None] = {
    ("mnist", "baseline"): (0.39, None),
    ("mnist", "r1"): (0.34, 0.032),
    ("mnist", "r1-reconstruction"): (0.29, 0.011),
    ("mnist", "r3"): (0.35, 0.036),
    ("mnist", "r3-reconstruction"): (0.25, 0.005),
    ("multimnist", "baseline"): (8.1, None),
    ("multimnist", "r1"): None,
    ("multimnist", "r1-reconstruction"): (7.5, None),
    ("multimnist", "r3"): None,
    ("multimnist", "r3-reconstruction"): (5.2, None),
}
"""Error in percent and its standard deviation over 3 trainings, by column and row; None: the cell is blank.

Source: Sabour, Frosst, Hinton, "Dynamic Routing Between Capsules" (2017), Table 1.
"""
_SETS = {"mnist": "MNIST", "multimnist": "MultiMNIST"}
_NETWORKS = {
    "baseline": "baseline CNN",
    "r1": "r=1",
    "r1-reconstruction": "r=1, reconstruction",
    "r3": "r=3",
    "r3-reconstruction": "r=3, reconstruction",
}
_HEADLINE = ("mnist", "r3-reconstruction")


def _table_1() -> list[Row]:
    """Return the rows of whole trainings, with the paper's figures."""
    rows = []
    for (column, row), found in TABLE_1.items():
        error, sd = found or (None, None)
        figure = "" if error is None else f"{error:g}" + ("" if sd is None else f" ± {sd:g}") + " % (paper)"
        label = f"Table 1, {_SETS[column]}, {_NETWORKS[row]}, whole training"
        headline = (column, row) == _HEADLINE
        rows.append(
            Row(label, figure, f"table1-{column}-full-whole", row, " %", "mean", "figures.seeds", headline)
        )
    return rows


def _quarter() -> list[Row]:
    """Return the rows of quarter-size networks after one epoch of MNIST."""
    size = "Table 1, MNIST, quarter-size networks, 1 epoch"
    ablations = {name: f"`{name}`" for name in ABLATIONS if name != "mnist_ablation_epochs"}
    return [
        Row(f"{size}: {text}", None, "table1-mnist-quarter-1-epoch", row, " %", "mean", "figures.seeds")
        for row, text in {**_NETWORKS, **ablations}.items()
    ]


def _of_paper(label: str, aim: str, what: str, tested_on: str = "") -> Row:
    figure = f"error_percent on {tested_on}" if tested_on else "error_percent"
    return Row(f"{label}, whole training", aim, what, figure)


def _novel_views(factor: str) -> list[Row]:
    """Return the rows of the capsule network and of the CNN, tested on the novel views of a factor."""
    label, tested_on = f"smallNORB, novel {factor}, ", f"smallnorb_{factor}/validation"
    return [
        _of_paper(label + network, "no figure in the paper", f"smallnorb-{factor}{kind}", tested_on)
        for network, kind in (("dynamic routing", ""), ("CNN", "-baseline"))
    ]


PAPER_ROWS = (
    Row(
        "MNIST, r=3, reconstruction, 3 epochs (`mnist_paper`)", most(0.9), "mnist-paper-3-epochs",
        headline=True,
    ),
    Row(
        "the same, mean of the weights (`--optim.average-decay 0.995`)", most(0.9),
        "mnist-paper-3-epochs-averaged",
    ),
    Row("the same steps of the authors' code (`mnist_official`)", None, "mnist-official-3-epochs"),
    *_quarter(),
    Row("Fashion-MNIST, r=3, reconstruction, 2 epochs", most(13), "fashion-mnist-2-epochs"),
    Row("CIFAR-10, quarter-size network, one hour on 2 CPU cores", most(45), "cifar10-quarter"),
    Row("MultiMNIST, r=3, reconstruction, one hour on 2 CPU cores", None, "multimnist-1-hour"),
    Row("`claims.py`, mini networks: claims tested", None, "claims-mini", "num_claims", "", "counted"),
    Row("the same, supported", None, "claims-mini", "num_supported", "", "counted"),
    Row("the same, contradicted", None, "claims-mini", "num_contradicted", "", "counted"),
    *_table_1(),
    _of_paper("affNIST, stopped at 99.23 % on MNIST in 40x40", "21 % (paper)", "affnist", "affnist/test"),
    _of_paper("affNIST, CNN, stopped at 99.22 %", "34 % (paper)", "affnist-baseline", "affnist/test"),
    _of_paper("CIFAR-10, sum of 7 networks", "10.6 % (paper)", "ensemble-cifar10_paper-full-whole-7"),
    _of_paper("smallNORB, dynamic routing", "2.7 % (paper)", "smallnorb"),
    _of_paper("smallNORB, EM routing, `smallnorb_em`", "1.8 % (paper)", "smallnorb-em"),
    _of_paper("smallNORB, EM routing, `smallnorb_em_small`", "2.2 % (paper)", "smallnorb-em-small"),
    *_novel_views("azimuth"),
    *_novel_views("elevation"),
    _of_paper("SVHN", "4.3 % (paper)", "svhn"),
    _of_paper("EMNIST letters", "no figure in the paper", "emnist-letters"),
    _of_paper("EMNIST balanced", "no figure in the paper", "emnist-balanced"),
)  # fmt: skip
