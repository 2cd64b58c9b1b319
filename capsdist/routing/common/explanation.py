"""Which backend a call of a routing algorithm takes, and why not the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from capsdist.errors import ShapeError

__all__ = ["Explanation", "choose"]


@dataclass(frozen=True)
class Explanation:
    """The backend of a call, and why it does not take each of the others; `str` has a line per backend.

    lines: what there is to say of each backend, in the order of preference.
    """

    backend: str
    lines: dict[str, str]

    @property
    def others(self) -> dict[str, str]:
        """Return what there is to say of the backends that are not taken."""
        return {name: line for name, line in self.lines.items() if name != self.backend}

    def __str__(self) -> str:
        """Return one line for each backend, in the order of preference."""
        return "\n".join(f"{backend:<9}  {line}" for backend, line in self.lines.items())


def choose(backends: Mapping[str, str], wanted: str, refusal: Callable[[str], str | None]) -> Explanation:
    """Return the backend that a call takes: `auto` is the first that it can take.

    backends: what each is, in the order of preference; the last refuses nothing. refusal: why a call cannot
    take a backend, or None.

    Raises:
        ShapeError: the call cannot take the backend that it asks for by name.
    """
    taken = None if wanted == "auto" else wanted
    lines: dict[str, str] = {}
    for name, meaning in backends.items():
        reason = refusal(name)
        if reason is not None and name == wanted:
            raise ShapeError(f"backend={wanted!r} cannot be taken: {reason}; choose backend='auto'")
        if reason is None and taken is None:
            taken = name
        if name == taken:
            lines[name] = f"taken: {meaning}"
        else:
            lines[name] = f"refused: {reason}" if reason else f"not needed: {meaning}"
    assert taken is not None
    return Explanation(taken, lines)
