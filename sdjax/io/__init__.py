"""Files: local directories, buckets, the hub, and the run directory."""
