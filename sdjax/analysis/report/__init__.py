"""What the report job shows of finished and running trainings: reads files only. No jax."""
