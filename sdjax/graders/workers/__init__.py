"""Worker processes for grading that may hang, die or use too much memory."""
