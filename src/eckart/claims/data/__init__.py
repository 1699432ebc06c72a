"""The same on real data: networks on handwritten digits, and a language model (D1–D6)."""
