"""Calibration: what the pieces are told, and fits to a compressed prefix."""
