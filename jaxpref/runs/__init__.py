"""Runs on disk: building one from its config, feeding it, opening it again, exporting it."""
