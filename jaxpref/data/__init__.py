"""Data: rows of every format into encoded groups, and groups into packed batches."""
