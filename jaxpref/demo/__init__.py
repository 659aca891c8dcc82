"""The demo: its generated data, the rules that score it, and `jaxpref demo`."""
