"""The tiny reasoner: a Hugging Face folder as package data, `package:sdjax.tiny` in a config."""
