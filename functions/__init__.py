"""Triggers: one blueprint per automation, plus operations, events and status. Each hands over and returns.

What a trigger needs is imported inside it: indexing loads this package in every worker, and one failing
import would leave the app without any function.
"""
