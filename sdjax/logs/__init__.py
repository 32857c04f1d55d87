"""Writes and shows metrics, rollouts and profiles of a run."""
