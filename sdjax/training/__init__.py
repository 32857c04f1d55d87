"""The parts that a training is made of: the loop, its steps, evaluations, resume."""
