"""What `python -m conal_rl.report` reads and draws."""
