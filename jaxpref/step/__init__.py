"""The optimizer step as pure functions: what is compiled, without files, data or a loop."""
