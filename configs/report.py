"""Runs side by side in one HTML file that opens offline.

python -m sdjax.main --config configs/report.py --runs runs/quickstart
"""

from sdjax.config import Report

config = Report(runs=("runs/quickstart",), out="report.html")
