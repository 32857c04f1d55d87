"""The decoder-only transformer: layers, attention, decoding."""
