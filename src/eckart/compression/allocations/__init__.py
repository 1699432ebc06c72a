"""Which size for which piece."""
