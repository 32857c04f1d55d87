"""The sections of the job configs; `sdjax.config` exports their classes."""
