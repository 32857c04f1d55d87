"""Pure functions on arrays: divergences, token weights, policy gradients, aggregation."""
