"""Graders of short answers: a number, a choice, an expression."""
