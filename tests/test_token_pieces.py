"""The text of each token of a text, for every type of tokenizer."""

from __future__ import annotations

import random

import pytest
import vocabularies

LETTERS = "ab é数🙂 \n<!,.'t"


@pytest.fixture(scope="module", params=vocabularies.KINDS)
def tokenizer(request):
    return vocabularies.tokenizer_of(request.param)


def test_pieces_of_any_tokens_join_to_their_text(tokenizer):
    rng = random.Random(0)
    for size in [*range(60), 200, 1500]:
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(size)]
        pieces = tokenizer.pieces(ids)
        assert len(pieces) == size and "".join(pieces) == tokenizer.decode_raw(ids)


def test_pieces_of_any_text_join_to_it(tokenizer):
    rng = random.Random(1)
    for size in range(60):
        text = "".join(rng.choices(LETTERS, k=size)) + rng.choice(vocabularies.TEXTS)
        ids = tokenizer.encode(text).tolist()
        for cut in (len(ids), len(ids) - 1):
            pieces = tokenizer.pieces(ids[:cut])
            assert "".join(pieces) == tokenizer.decode_raw(ids[:cut])
            assert tokenizer.pieces(ids[:cut], checked=False)[1:] == pieces[1:]


def test_a_character_belongs_to_the_token_that_begins_it_however_long_the_run(tokenizer):
    ids = tokenizer.encode("é🙂" * 500).tolist()
    pieces = tokenizer.pieces(ids)
    assert "".join(pieces) == tokenizer.decode_raw(ids)
    if "<unk>" not in pieces:
        assert "".join(pieces).strip() == "é🙂" * 500
        assert {len(piece) for piece in pieces} <= set(range(5))


def test_words_keep_the_space_before_them(tokenizer):
    ids = tokenizer.encode("the cat sat on the mat").tolist()
    assert "".join(tokenizer.token_texts(ids)).split() == "the cat sat on the mat".split()
