"""Where adapters sit in a model, and how a layer computes with them."""
