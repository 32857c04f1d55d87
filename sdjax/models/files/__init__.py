"""Models on disk: configs, weights, exports."""
