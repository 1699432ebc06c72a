"""One step of one matrix: its view, its state, the basis that is renewed or kept, and what is written back."""
