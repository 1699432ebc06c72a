"""Bytes: what a training takes, predicted and measured, and which method fits into how many."""
