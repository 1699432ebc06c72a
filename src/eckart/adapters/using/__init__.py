"""Adapters at work: switched, mixed in a batch, merged."""
