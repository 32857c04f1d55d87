"""Compiler options under which a sampler and a trainer round alike."""

AS_WRITTEN = {"xla_allow_excess_precision": False}
"""A cast to bfloat16 in the code is one in the program. XLA may otherwise leave it out inside a
fusion, and fuses the same layer differently in a forward pass over rows and in decoding: on
SmolLM2 in bfloat16 that made a third of the gap between their log-probabilities."""
