"""Models: one decoder for all families, its weights in every file format, adapters, log-probs."""
