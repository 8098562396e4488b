"""The optimizer: MAOP, differential learning rates, and what guards, averages and carries over its state."""
