"""The position of a run in its data: enough to continue at exactly the next sample, and nothing else.

World size, prefetch depth and threads are not part of it: none of them enters the order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from capsdist.errors import DataError

__all__ = ["Position", "check_inside", "check_same_order"]

_RENAMED = {"global_batch": "global_batch_size"}  # the names of version 0.1


@dataclass(frozen=True)
class Position:
    """Which data set in which order, and the steps completed inside `epoch` (see `EpochSteps`)."""

    digest: str
    seed: int
    epoch: int
    step: int
    global_batch_size: int
    lanes: int
    window: int
    last_batch: str = "short"  # positions of version 0.1 have no such field, and this meaning

    def to_dict(self) -> dict[str, object]:
        """Return a dict that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> Position:
        """Rebuild a position from `to_dict`.

        Raises:
            DataError: unknown or missing fields, named.
        """
        names = {field.name for field in fields(cls)}
        values = {_RENAMED.get(name, name): value for name, value in values.items()}
        if names != values.keys() | {"last_batch"}:
            raise DataError(
                f"data position has fields {sorted(values)} instead of {sorted(names)}; "
                "it was saved by another version: use that one"
            )
        return cls(**values)  # type: ignore[arg-type]


def check_same_order(position: Position, own: Position) -> None:
    """Check that `position` is one of the data and the order of this run, which has `own`.

    Raises:
        DataError: naming the first difference with both values.
    """
    for name, remedy in (
        ("digest", "continue with the data set it was trained on, or start a new run"),
        ("seed", "use the old seed"),
        ("global_batch_size", "use the old batch"),
        ("lanes", "use the old lanes"),
        ("window", "use the old window"),
        ("last_batch", "use the old data.last_batch"),
    ):
        saved, here = getattr(position, name), getattr(own, name)
        if saved != here:
            raise DataError(f"data position has {name}={saved!r}, this run has {here!r}; {remedy}")


def check_inside(position: Position, num_steps: int) -> None:
    """Check that the step of `position` is one of the `num_steps` of its epoch.

    Raises:
        DataError: naming the step.
    """
    if not 0 <= position.step <= num_steps:
        found = f"step={position.step}, epoch {position.epoch} has {num_steps} steps"
        raise DataError(f"data position has {found}; resume from another checkpoint")
