"""The theory of low-rank learning dynamics, runnable: deep linear networks, their compression, matrix completion."""
