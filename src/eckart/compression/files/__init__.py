"""Saving, loading and making dense again."""
