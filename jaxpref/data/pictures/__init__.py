"""Pictures in prompts: found in rows, decoded, cut into the tiles that a model is given."""
