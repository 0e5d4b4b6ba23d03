"""Signals and streams of the commands: what ends them, and what must not."""
