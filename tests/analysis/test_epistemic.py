import json
import random

import numpy as np
import paths
import pytest

from sdjax.analysis import epistemic, lengths
from sdjax.errors import UserError

GOLDEN = [json.loads(line) for line in (paths.GOLDEN / "epistemic.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_paper_counts_are_the_references(case):
    assert epistemic.count(case["text"], "paper") == case["counts"]
    assert sum(epistemic.count(case["text"]).values()) == case["total"]


@pytest.mark.parametrize(
    ("text", "paper", "word"),
    [
        ("Wait, WAIT. wait!", 3, 3),
        ("await the almighty", 2, 0),
        ("Unlikely; checked, double-check.", 3, 3),
        ("checkmate, paycheck", 2, 0),
        ("It seemed so. It seems so. It seems_so.", 2, 2),
        ("hm, hmmm... hmm", 2, 3),
        ("waiting time", 1, 0),
        ("perhaps/maybe", 2, 2),
        ("日本wait語", 1, 0),
        ("", 0, 0),
    ],
)
def test_word_mode_counts_whole_words_and_listed_inflections(text, paper, word):
    assert sum(epistemic.count(text, "paper").values()) == paper
    assert sum(epistemic.count(text, "word").values()) == word


def test_rates_are_per_response_and_per_thousand_tokens():
    summary = epistemic.summarise(["Wait. Maybe.", "wait", "no", "no"], [10, 20, 10, 10])
    assert summary.words["wait"] == 2 and summary.words["maybe"] == 1 and summary.total == 3
    assert summary.per_response == 0.75
    assert summary.per_1000_tokens == 60
    nothing = epistemic.summarise([], [])
    assert (nothing.total, nothing.per_response, nothing.per_1000_tokens) == (0, 0, 0)


@pytest.mark.parametrize(
    ("tokens", "mode", "marked"),
    [
        (["Let", " me", " che", "ck", " it"], "paper", "00110"),
        (["Wa", "it", "ing"], "paper", "110"),
        (["Wa", "it", "ing"], "word", "000"),
        (["un", "likely"], "paper", "01"),
        (["un", "likely"], "word", "11"),
        ([" Wait,", " so", " wait"], "word", "101"),
        (["w", "", "a", "", "it", ""], "paper", "111110"),
        (["İ wait", "İ", " maybe"], "paper", "101"),  # "İ" is longer in lower case
        (["no", "thing"], "paper", "00"),
        ([], "paper", ""),
    ],
)
def test_the_tokens_of_an_epistemic_word_are_marked(tokens, mode, marked):
    mask = epistemic.epistemic_tokens(tokens, mode)
    assert mask.dtype == bool
    assert "".join(str(int(m)) for m in mask) == marked


@pytest.mark.parametrize("mode", ["paper", "word"])
def test_marked_tokens_cover_the_counted_words_however_the_text_is_cut(mode):
    rng = random.Random(0)
    for case in GOLDEN:
        text = case["text"]
        cuts = sorted(rng.randrange(len(text) + 1) for _ in range(len(text) // 3))
        tokens = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        mask = epistemic.epistemic_tokens(tokens, mode)
        single = epistemic.epistemic_tokens(list(text), mode)
        starts = np.cumsum([0] + [len(t) for t in tokens])
        for token, start, is_marked in zip(tokens, starts, mask, strict=False):
            inside = single[start : start + len(token)]
            assert not token or is_marked == inside.any()
        assert single.any() == bool(sum(epistemic.count(text, mode).values()))


@pytest.mark.parametrize("mode", ["paper", "word", "own"])
def test_the_fast_search_finds_what_the_patterns_find(mode, tmp_path):
    own = {"a": ["aa", "a", "aab"], "b": ["ab a", "ab"], "c": ["wait", "wai", "İx"], "d": ["."]}
    if mode == "own":
        mode = str(tmp_path / "own.json")
        (tmp_path / "own.json").write_text(json.dumps(own))
    rng = random.Random(1)
    parts = ["a", "b", " ", "ab", "wait", "ing", "un", "likely", "hmm", "m", "i̇x", "_", ".", "re"]
    texts = ["".join(rng.choices([*parts, "check"], k=40)) for _ in range(300)]
    texts += [case["text"].lower() for case in GOLDEN]
    found = 0
    for text in texts:
        for word in epistemic.lexicon(mode).words.values():
            wanted = [match.span() for match in word.pattern.finditer(text)]
            assert list(word.spans(text)) == wanted
            found += len(wanted)
    assert found > 100


def test_a_lexicon_of_ones_own_is_read_from_a_file(tmp_path):
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"aha": ["aha", "A-ha"], "oh": ["oh"]}))
    assert epistemic.count("Aha! a-ha, oho", str(file)) == {"aha": 2, "oh": 0}


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (None, "no such file"),
        ("{", "JSON"),
        ("[]", "no words"),
        ("{}", "no words"),
        ('{"oh": "oh"}', "'oh'"),
        ('{"oh": []}', "'oh'"),
        ('{"oh": [" "]}', "'oh'"),
    ],
)
def test_a_lexicon_file_that_is_none_is_a_user_error(tmp_path, content, named):
    file = tmp_path / "words.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=r"words\.json") as error:
        epistemic.lexicon(str(file))
    assert named in str(error.value) and "must be" in str(error.value)


def test_lengths_have_mean_percentiles_and_truncated_share():
    summary = lengths.summarise(list(range(1, 102)), [True] * 25 + [False] * 76)
    assert summary.completions == 101
    assert (summary.min, summary.p5, summary.p25, summary.p50) == (1, 6, 26, 51)
    assert (summary.p75, summary.p95, summary.max, summary.mean) == (76, 96, 101, 51)
    assert summary.truncated == pytest.approx(25 / 101)
    assert summary.to_dict()["p50"] == 51


@pytest.mark.parametrize(("sizes", "truncated"), [([], []), ([1, 2], [True])])
def test_lengths_of_nothing_or_of_unequal_numbers_are_refused(sizes, truncated):
    with pytest.raises(ValueError, match="truncation flags"):
        lengths.summarise(sizes, truncated)
