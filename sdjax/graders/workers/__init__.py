"""Worker processes for comparisons that may hang, die or use too much memory."""
