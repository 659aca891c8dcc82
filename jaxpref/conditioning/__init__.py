"""Conditioning: preferences in the prompt, so that one policy serves them all."""
