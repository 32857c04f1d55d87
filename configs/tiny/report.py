"""Shows the miniature's trainings side by side in one HTML file.

python -m sdjax.main --config configs/tiny/report.py --runs runs/tiny/sdpo_s0 runs/tiny/grpo_s0
"""

from sdjax.config import Report

config = Report(
    runs=("runs/tiny/sdpo_s0", "runs/tiny/grpo_s0"),
    out="runs/tiny/report.html",
    title="The finding in miniature",
)
