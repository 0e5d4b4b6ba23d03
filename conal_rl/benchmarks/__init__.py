"""What `python -m conal_rl.benchmark` measures."""
