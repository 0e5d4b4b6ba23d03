"""The data and the figures of `python -m conal_rl.report`."""
