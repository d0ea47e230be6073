"""Labelling sessions: the log of labels, exchange with other tools, forecasts and proposals."""
