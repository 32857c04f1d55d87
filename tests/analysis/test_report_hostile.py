"""In a headless Chromium, no text can harm a report, and a page holds thousands of rollouts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import report_runs
from report_browser import SHOWN, Page, listed, open_rollout, said, tokens, written

pytestmark = pytest.mark.heavy  # a browser

ATTACK = "window.hacked = 1"
HOSTILE = [
    f"<script>{ATTACK}</script>",
    f"</script><script>{ATTACK}</script>",
    f"</style><style>body {{ display: none }}</style><script>{ATTACK}</script>",
    f"<img src=x onerror='{ATTACK}'>",
    f"<svg onload='{ATTACK}'><!-- ]]> --!>",
    f"&lt;script&gt; &#60; ${{{ATTACK}}} $title {{{{7*7}}}} `\"'\\",
    "\U0001f642 \U0001f469\u200d\U0001f469\u200d\U0001f467 e\u0301",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u202egnihtyna\u2066 \ud800 \udc00 \x00\x07\x1b[31m\x7f \ufeff",
    "a line of 100 KB " + "x" * 100_000,
]
UNSEEN = {0x202E, 0x2066, 0xD800, 0xDC00, 0, 7, 0x1B, 0x7F, 0xFEFF}


def spelled(text):
    """Returns a text as the page writes it, with invisible characters as their numbers."""
    return "".join(f"\u27e8U+{ord(c):04X}\u27e9" if ord(c) in UNSEEN else c for c in text)


def test_hostile_text_is_shown_as_text_wherever_it_stands(tmp_path, opened):
    rng = np.random.default_rng(0)
    rows = []
    for text in HOSTILE:
        row = report_runs.rollout(rng, 1, 1, 4, tops=2)
        pieces = [text, " wait", text[:50], "<|im_end|>"]
        row |= {"pieces": pieces, "completion": "".join(pieces[:3]), "epistemic": [1]}
        row |= {k: text for k in ("id", "prompt", "answer", "feedback", "finish")}
        row |= {"details": {text: [text]}, "reprompt": text + text, "demonstration": text}
        row["student_top"] = [[[text, -0.1], [" wait", -3.0]]] * 4
        rows.append(row)
    answered = [
        {k: text for k in ("set", "id", "answer", "completion", "finish", "feedback")}
        | {"messages": [{"role": text, "content": text}, text], "correct": i % 2 == 0}
        | {"tokens": 3, "details": {text: [text]}}
        for i, text in enumerate(HOSTILE)
    ]
    run = report_runs.write(
        tmp_path / f"<img src=x onerror='{ATTACK}'>", rollouts=rows, answered={0: answered}
    )
    warnings = [{"step": i + 1, "kind": text, "text": text} for i, text in enumerate(HOSTILE)]
    (run / "warnings.jsonl").write_text(report_runs.text_of(warnings))
    start = dict.fromkeys(("sdjax", "commit", "dirty", "device", "devices"), HOSTILE[2])
    (run / "run.json").write_text(json.dumps({"starts": [start]}))
    config = json.loads((run / "config.json").read_text())
    config |= {"task": {"class": HOSTILE[3], **dict(enumerate(HOSTILE))}}
    (run / "config.json").write_text(json.dumps(config | {"model": {"path": HOSTILE[0]}}))
    other_set = f"ood/{HOSTILE[1]}/avg@4"
    with (run / "metrics.jsonl").open("a") as lines:
        lines.write(
            json.dumps({"step": 11, **{text: 1.0 for text in [*HOSTILE, other_set]}}) + "\n"
        )
    evaluations = json.loads((run / "evaluations.json").read_text())
    for one in evaluations:
        one["out_of_domain"][HOSTILE[1]] = one["out_of_domain"].pop("largest_number")
        one["epistemic"] |= {HOSTILE[0]: 1}
    (run / "evaluations.json").write_text(json.dumps(evaluations))
    other = report_runs.write(tmp_path / "other", method="grpo", steps=2)
    file = written(tmp_path, run, other, title=f"</title>{HOSTILE[1]}")
    page = opened(file)
    assert page.inner_text("#title") == f"</title>{HOSTILE[1]}"
    assert run.name in page.inner_text("#overview") and HOSTILE[3] in page.inner_text("#overview")
    overview = page.inner_text("#overview")
    assert HOSTILE[0] in overview and f"sdjax {HOSTILE[2]}" in overview
    told = page.locator("#warnings bdi").all_text_contents()
    assert told == [spelled(text) for text in HOSTILE]
    assert f"domain: {HOSTILE[1]}" in page.inner_text("#overview .story >> nth=1")
    page.click("#tab-curves")
    page.select_option("#more", HOSTILE[0])
    page.locator("#curves figcaption").filter(has_text=HOSTILE[0]).wait_for()
    assert page.locator("#curves figcaption").first.text_content() == HOSTILE[0]
    page.locator("#curves .u-over").first.hover()
    check_answers(page)
    page.click("#tab-words")
    assert HOSTILE[0] in page.inner_text("#words tbody")
    page.select_option("#word-set", HOSTILE[1])
    page.click("#tab-rollouts")
    for i, text in enumerate(HOSTILE):
        open_rollout(page, i)
        assert tokens(page)[0] == spelled(text)
        assert page.locator("#detail pre").all_text_contents() == [spelled(text), spelled(text * 2)]
        assert page.locator("#detail dd").all_text_contents()[:2] == [spelled(text)] * 2
        assert page.locator(f"#row-{i} .preview").text_content() == spelled(
            rows[i]["completion"][:100]
        )
        page.hover("#completion [data-t='1']")
        assert page.locator(".tops td").first.text_content() == json.dumps(
            spelled(text), ensure_ascii=False
        )
        if "\ud800" in text:  # a lone surrogate, which cannot be typed
            continue
        page.fill("#text", text[:40])
        said(page, re.compile("of 26 rollouts"))
        assert i in listed(page)
        page.click("#clear")
        said(page, "26 rollouts")
    assert page.evaluate("typeof window.hacked") == "undefined"
    assert page.is_visible("body") and page.locator("img, svg, iframe, object, base").count() == 0


def check_answers(page):
    """Asserts that every hostile answer is shown as text, and found by its text."""
    page.click("#tab-answers")
    for i, text in enumerate(HOSTILE):
        page.evaluate(f"location.hash = '#answers?open={i}'")
        page.wait_for_selector(f"#question[data-shown='{i}']")
        assert page.locator("#question pre").all_text_contents() == [spelled(text)] * 4
        assert page.locator("#question .heading bdi").all_text_contents() == [spelled(text)] * 3
        if "\ud800" in text:
            continue
        page.fill("#answer-text", text[:40])
        page.locator("#questions-count").filter(has_text="of 10 questions").wait_for()
        page.click("#answer-clear")
        page.locator("#questions-count").filter(has_text=re.compile("^10 questions")).wait_for()


def test_the_page_may_run_and_load_nothing_else(tmp_path, browser):
    made = Page(browser)
    page = made.open(written(tmp_path, report_runs.write(tmp_path / "run")))
    page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.hacked = 1";
          document.body.append(script);
          const style = document.createElement("style");
          style.textContent = "body { display: none }";
          document.body.append(style);
          const image = document.createElement("img");
          image.src = "http://127.0.0.1:9/x.png";
          document.body.append(image);
        }"""
    )
    assert page.evaluate("typeof window.hacked") == "undefined" and page.is_visible("body")
    assert page.evaluate("fetch('http://127.0.0.1:9/').then(() => 1, (e) => e.name)") == "TypeError"
    refused = [text for text in made.said if "Content Security Policy" in text]
    assert len(refused) >= 4
    page.close()


def test_a_completion_without_siblings_or_details_shows_no_word_of_the_program(tmp_path, opened):
    rng = np.random.default_rng(0)
    rows = [report_runs.rollout(rng, 1, question, 6) for question in range(3)]
    for name in ("answer", "feedback", "details", "prompt", "reprompt"):
        del rows[1][name]
    page = opened(written(tmp_path, report_runs.write(tmp_path / "run", rollouts=rows)))
    page.click("#tab-rollouts")
    for i in range(3):
        open_rollout(page, i)
        assert page.locator("#detail .siblings").count() == 0
        assert page.locator("#detail .graded").count() == (i != 1)
        stray = "() => [...document.getElementById('detail').childNodes].map((n) => n.nodeType)"
        assert set(page.evaluate(stray)) == {1}  # elements alone, no text between them
        assert not re.search(r"\b(null|undefined|NaN)\b", page.inner_text("#detail"))


def first_view(tmp_path, opened, low, high, share):
    """Returns megabytes and milliseconds to the first view of a report of 5,000 rollouts."""
    rng = np.random.default_rng(0)
    rows = [
        report_runs.rollout(
            rng, step, q, int(rng.integers(low, high)), tops=5 if q < share and k == 0 else 0
        )
        for step in range(1, 64)
        for q in range(10)
        for k in range(8)
    ][:5000]
    file = written(tmp_path, report_runs.write(tmp_path / "run", rollouts=rows))
    page = opened(file, "#rollouts")
    took = int(page.get_attribute("html", "data-ready"))
    assert page.inner_text("#count") == "5,000 rollouts"
    assert page.locator("[role=option]").count() < 60
    page.wait_for_selector(SHOWN)
    page.focus("#list")
    page.keyboard.press("End")
    page.wait_for_selector("#detail[data-shown='4999']")
    page.fill("#text", rows[2500]["completion"][:60])
    said(page, "1 of 5,000 rollouts")
    assert listed(page) == [2500]
    size = file.stat().st_size / 1e6
    print(f"{size:.1f} MB, first view after {took} ms")
    return size, took


def test_5000_short_rollouts_are_seen_at_once(tmp_path, opened):
    size, took = first_view(tmp_path, opened, 30, 50, share=2)
    # 2 s on an idle machine; the limit is larger because other tests run at the same time.
    assert size < 10 and took < 6000


@pytest.mark.slow
def test_5000_rollouts_of_300_to_500_tokens_are_seen_at_once(tmp_path, opened):
    size, took = first_view(tmp_path, opened, 300, 501, share=5)
    assert size <= 40 and took < 2000


def test_alternatives_that_were_dropped_are_not_promised(tmp_path, opened):
    rng = np.random.default_rng(0)
    run = report_runs.write(tmp_path / "run", rollouts=[report_runs.rollout(rng, 1, 1, 10)])
    page = opened(written(tmp_path, run), "#rollouts")
    page.hover("#completion [data-t='1']")
    assert "likeliest" not in page.inner_text("#tip")
    assert "No alternatives are kept" in page.inner_text("#detail")


def test_a_run_without_rollouts_says_so(tmp_path, opened):
    run = report_runs.write(tmp_path / "run", rollouts=[])
    page = opened(written(tmp_path, run), "#rollouts")
    assert "kept no rollouts" in page.inner_text("#rollouts")
    assert Path(page.url.removeprefix("file://").partition("#")[0]).exists()
