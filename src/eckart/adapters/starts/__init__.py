"""How an adapter's factors start: one function (adapter, Start) → None for each init, in small files."""
