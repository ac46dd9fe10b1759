"""Frozen values and pure functions over them; no I/O, no clock, no SDK."""
