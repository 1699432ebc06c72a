"""Adapters that change while they train: pruned, shrunk, restarted."""
