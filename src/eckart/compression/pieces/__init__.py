"""What is decomposed together, how it is stored, and with what beside it."""
