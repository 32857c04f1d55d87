"""Speed measured on random tokens, against what the device can do."""
