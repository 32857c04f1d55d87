"""Writes a training checkpoint as a Hugging Face folder.

python -m sdjax.main --config configs/export.py --run runs/sdpo_chain_sum --out exported
"""

from sdjax.config import Export

config = Export(run="runs/sdpo_chain_sum", out="exported")
