"""`compress`: from a dense model to a plan, and to a smaller model."""
