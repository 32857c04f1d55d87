#!/usr/bin/env bash
# tokenizers 0.23.3: the ByteFallback decoder loses whole characters before a cut one.
#
# Tokenizers such as those of Llama 2 and Gemma spell a character that they lack with one token
# per byte of its UTF-8 form. A length limit can end a completion inside such a character.
# One would expect what Python's errors="replace" gives: the cut character becomes U+FFFD and the
# complete characters before it stay.
# What happens: the decoder reads the whole run of byte tokens at once. If any part of the run is
# not UTF-8, every byte of the run becomes one U+FFFD. The complete characters are lost too.
# So a reward or a log sees less text than the model wrote.
# Instead: join the bytes of each run of byte tokens and decode them with errors="replace".
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check tokenizers==0.23.3

venv/bin/python -I - <<'EOF'
import tokenizers
from tokenizers import Tokenizer, decoders, models

print("tokenizers", tokenizers.__version__)
byte_tokens = {f"<0x{byte:02X}>": byte for byte in range(256)}
tokenizer = Tokenizer(models.BPE(vocab=byte_tokens, merges=[], byte_fallback=True))
tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])

text = "日本語"
ids = tokenizer.encode(text).ids
whole = tokenizer.decode(ids)
cut = tokenizer.decode(ids[:-1])
python = bytes(ids[:-1]).decode(errors="replace")
print(f"{len(ids)} byte tokens: {whole!r}")
print(f"{len(ids) - 1} byte tokens: {cut!r}")
print(f"the same bytes in Python: {python!r}")

assert len(ids) == 9
assert whole == "日本語"
assert cut == "\ufffd" * 8, "the decoder no longer replaces the whole run"
assert python == "日本\ufffd"
EOF
