"""Kubekeeper's domain package: observe, decide, act, record, for each automation."""
