"""Training: the loop around the step, for one run or for a stack of adapters."""
