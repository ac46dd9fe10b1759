"""Benchmarks that print ratios against named baselines, all measured in one run; never deployed."""
