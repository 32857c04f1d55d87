"""Long preparations say how far they are, at most every few seconds; quick ones say nothing."""

import logging
import time

import pytest

from sdjax.io import progress


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO, logger="sdjax.io.progress")
    return lambda: [record.getMessage() for record in caplog.records]


def slow(number, seconds):
    for i in range(number):
        time.sleep(seconds)
        yield i


def test_a_quick_loop_and_a_quick_block_say_nothing(lines):
    assert list(progress.told(range(1000), "tokenising", "prompts", 1000)) == [*range(1000)]
    with progress.waiting("compiling"):
        pass
    assert lines() == []


def test_a_slow_loop_says_how_many_are_done_after_each_silence(lines, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.1)
    items = progress.told(slow(30, 0.02), "tokenising", "prompts", 60_000)
    assert list(items) == [*range(30)]
    said = lines()
    assert 2 <= len(said) <= 6
    assert all(line.startswith("tokenising: ") for line in said)
    assert all(line.endswith(" of 60,000 prompts") for line in said)
    counts = [int(line.split()[1]) for line in said]
    assert counts == sorted(set(counts)) and 0 < counts[0] < 30


def test_a_number_has_thousands_and_may_lack_a_total(lines, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    for _ in progress.told(range(12_001), "reading a.jsonl", "rows"):
        pass
    assert lines()[-1] == "reading a.jsonl: 12,000 rows"


def test_a_block_that_waits_says_for_how_long_where_it_is_told_to(lines, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.05)
    monkeypatch.setattr(progress, "LATER_S", 0.0)
    said = []
    with progress.waiting("compiling", said.append):
        time.sleep(0.4)
    count = len(said)
    assert 2 <= count <= 8 and set(said) == {"compiling: 0 s"} and lines() == []
    time.sleep(0.15)
    assert len(said) == count


def test_a_block_is_silent_while_a_loop_in_it_speaks(lines, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.1)
    monkeypatch.setattr(progress, "LATER_S", 0.3)
    with progress.waiting("loading the task Math"):
        for _ in progress.told(slow(40, 0.02), "reading", "rows"):
            pass
    assert lines() and all(line.startswith("reading: ") for line in lines())
