"""Compressing language models on text, and training what was compressed a little further."""
