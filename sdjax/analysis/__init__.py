"""Computes figures from files and texts of runs: accuracy, lengths, epistemic words, reports."""
