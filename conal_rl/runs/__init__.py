"""A run: its folder, files, checkpoints, weights, progress, and the trainer that makes one."""
