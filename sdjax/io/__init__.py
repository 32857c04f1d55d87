"""Reads and writes files: run directories, buckets, and the hub's cache."""
