"""What a run costs on a TPU slice, from the real compiler, before a chip is rented."""
