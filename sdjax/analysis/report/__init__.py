"""Builds the report of finished and running trainings from the files in their run directories."""
