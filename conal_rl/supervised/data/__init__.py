"""Data sets of the supervised benchmarks, each read from the files it is published as."""
