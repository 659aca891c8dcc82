"""On-policy training: answers of the policy itself, their rewards, and a step on them."""
