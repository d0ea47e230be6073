"""The loop of rounds, run directories, and sweeps of them."""
