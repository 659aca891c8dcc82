"""Generation: prompts, sampling, decoding and mixing of policies."""
