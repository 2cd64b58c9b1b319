"""Benchmarks and their records."""
