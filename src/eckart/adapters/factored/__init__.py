"""Adapters as pairs of factors: their algebra, their comparison, their extraction from two models."""
