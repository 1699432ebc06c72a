"""How good and how fast a language model is, beside others."""
