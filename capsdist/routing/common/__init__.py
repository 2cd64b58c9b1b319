"""Shared parts of routing algorithms: checks, tiling, precision, autograd. Nothing here knows one."""
