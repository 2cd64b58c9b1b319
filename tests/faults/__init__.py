"""Faults on purpose, and what a run was trained on in spite of them.

For the tests, and for jobs/bench_faults.py and jobs/bench_recovery.py; it is no part of the package capsdist.
"""
