"""Stuck-disk release: a disk held by a dead or wrong VM is freed, safely, in about a minute."""
