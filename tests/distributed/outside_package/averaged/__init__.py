"""A routing algorithm of a user: every child divides itself equally over the parents."""

from averaged.routing import AveragedOptions, route_averaged

__all__ = ["AveragedOptions", "route_averaged"]
