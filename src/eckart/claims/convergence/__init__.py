"""Low rank at the end: what weight decay, dropout and masking make training converge to (C1–C7)."""
