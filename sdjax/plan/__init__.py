"""Estimates the memory, time and cost of a training on a slice before anyone pays for it."""
