"""Low rank at every step: what gradient descent does to deep linear and nonlinear networks (T1–T8)."""
