"""Shows runs side by side in one HTML file that opens offline.

python -m sdjax.main --config configs/report.py --runs runs/quickstart/sdpo/0 runs/quickstart/grpo/0
"""

from sdjax.config import Report

config = Report(runs=("runs/quickstart/sdpo/0", "runs/quickstart/grpo/0"), out="report.html")
