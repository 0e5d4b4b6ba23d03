"""Data sets of the supervised benchmarks, read from the published files."""
