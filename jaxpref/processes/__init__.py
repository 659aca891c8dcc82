"""Several processes that work as one: how they start, what only one of them does, how they end."""
