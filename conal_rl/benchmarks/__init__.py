"""The measurements and comparisons of `python -m conal_rl.benchmark`."""
