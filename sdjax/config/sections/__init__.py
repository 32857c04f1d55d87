"""The sections of a config; `sdjax.config` exports every class in them."""
