"""The position of a run in its data: enough to continue at exactly the next sample, and nothing else.

World size, prefetch depth and threads are not part of it: none of them enters the order.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from capsdist.errors import DataError

__all__ = ["Position"]

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
