"""Kubekeeper's domain package: observe, decide, act, record, for each automation."""

__version__ = "0.1.0"
