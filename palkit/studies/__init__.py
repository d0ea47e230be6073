"""Statistics, figures and reports of finished sweeps."""
