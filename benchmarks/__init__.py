"""Measurements that stay: each module is a command, `python -m benchmarks.NAME`; results lie in benchmarks/results/."""
