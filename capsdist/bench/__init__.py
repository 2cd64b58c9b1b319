"""Benchmarks: how fast, how large, and a record of what was found."""
