"""The overview (arXiv 2503.19859) as claims that run: each predicts a number, measures it, and can fail."""
