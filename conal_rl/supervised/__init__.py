"""The paper's supervised benchmarks: data sets, networks, losses, metrics and experiments."""
