"""The sampling engine: slots that decode completions and take the next one as each ends."""
