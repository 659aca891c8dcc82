"""Local disks and buckets: paths, copies on this host, files that grow."""
