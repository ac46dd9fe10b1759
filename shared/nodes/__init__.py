"""Nodes: cordon, uncordon, drain. Used by several automations and by one-off operations."""
