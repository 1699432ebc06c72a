"""What P is made of: one file for each shape."""
