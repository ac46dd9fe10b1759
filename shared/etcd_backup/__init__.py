"""Verified, incremental etcd backups in Blob Storage, with restore and restore drills."""
