"""Sampling by a vLLM or SGLang server."""
