#!/usr/bin/env bash
# transformers 5.24.0: padding a row changes the logits of a longrope model (Phi-3, Phi-4-mini).
#
# Such a model has two sets of rotary factors: for rows up to its original context, and for longer
# ones. One would expect padding behind a row, masked as always, to change nothing.
# What happens: the factors are chosen for the whole batch, by its largest position, and padding has
# positions too. A row that is padded over the original context, or stands beside a longer one,
# gets other factors. So log-probabilities depend on how a trainer batches its rows, and ratios
# between a sampler and a trainer are wrong.
# Instead: choose one set for a whole run, by the longest row that it may have. vLLM does so by
# --max-model-len, and sdjax by model.context.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check transformers==5.24.0 torch==2.13.0

venv/bin/python -I - <<'EOF' 2>&1 | grep -v "Warning\|warn"
import torch
import transformers

torch.manual_seed(0)
config = transformers.Phi3Config(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    max_position_embeddings=64, original_max_position_embeddings=8, initializer_range=0.5,
    rope_parameters={
        "rope_type": "longrope", "rope_theta": 10000.0, "factor": 8.0,
        "short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0],
    },
)
model = transformers.Phi3ForCausalLM(config).eval()
row = torch.tensor([[5, 6, 7, 8, 9, 10]])


def change(length):
    """Returns how much the largest logit of the row changes if it is padded to a length."""
    more = length - row.shape[1]
    padded = torch.nn.functional.pad(row, (0, more))
    mask = torch.nn.functional.pad(torch.ones_like(row), (0, more))
    with torch.no_grad():
        alone = model(row).logits
        return float((model(padded, attention_mask=mask).logits[:, :6] - alone).abs().max())


print("transformers", transformers.__version__)
print(f"padded to 8 tokens, the original context: logits change by {change(8):.6f}")
print(f"padded to 9 tokens: logits change by {change(9):.6f}")

assert transformers.__version__ == "5.24.0"
assert change(8) < 1e-4, "padding within the original context changes the logits too"
assert change(9) > 1.0, "padding beyond the original context no longer changes the logits"
EOF
