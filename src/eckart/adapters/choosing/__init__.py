"""Which matrices are adapted, and at which ranks."""
