"""Backbones, adapters and how they are fitted."""
