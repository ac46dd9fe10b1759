"""Agents follow pending pods, metrics, schedules and manual requests, over every kind of Azure node pool."""
