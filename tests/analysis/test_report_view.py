"""In a headless Chromium, the report tells its story, compares answers and draws on any axis."""

import json
import re

import pytest
import report_runs
from report_browser import written

pytestmark = pytest.mark.heavy  # a browser

GRADES = {
    "up": ([False, False], [True, True]),
    "down": ([True, True], [False, True]),
    "right": ([True, True], [True, True]),
    "wrong": ([False, False], [False, False]),
    "half": ([True, False], [False, True]),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Returns a report of three seeds of unequal length and another run, with warnings."""
    folder = tmp_path_factory.mktemp("view")
    runs = []
    for seed, steps in enumerate((40, 40, 60)):
        answered = {
            step: report_runs.answers({name: of[end] for name, of in GRADES.items()}, f"at {step}")
            for end, step in enumerate((0, steps))
        }
        made = report_runs.write(
            folder / f"sdpo.{seed}",
            seed=seed,
            steps=steps,
            every=10,
            rollouts=[],
            answered=answered,
        )
        runs.append(made)
    flat = [{"step": s, "kind": "flat", "text": "rewards are flat"} for s in (5, 6, 7)]
    alarm = {"step": 20, "kind": "ood_drop", "text": "alarm: the score fell by 55%"}
    (runs[0] / "warnings.jsonl").write_text(report_runs.text_of([*flat, alarm]))
    runs.append(report_runs.write(folder / "grpo", method="grpo", steps=40, rollouts=[]))
    lines = [json.loads(line) for line in (runs[-1] / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in x.items() if not k.startswith(("eval", "ood", "time"))} for x in lines
    ]
    (runs[-1] / "metrics.jsonl").write_text(report_runs.text_of(kept))
    return written(folder, *runs)


def test_the_first_view_tells_the_story_in_pictures_and_sentences(report, opened):
    page = opened(report)
    figures = page.locator("#overview figure")
    titles = page.locator("#overview figcaption").all_text_contents()
    assert titles == [
        "Held-out accuracy, in domain (share)",
        "Held-out accuracy, out of domain: largest_number (share)",
        "Length, held-out answers (tokens)",
        "Doubt, training answers (words per 1,000 tokens)",
    ]
    assert page.locator("#overview figure canvas").count() == 4
    told = figures.nth(0).locator(".told li").all_text_contents()
    assert re.fullmatch(
        r"sdpo: rose from 0\.\d\d to 0\.\d\d \(50 questions, 95 % interval 0\.\d\d to 0\.\d\d\), "
        r"the mean of 3 runs \(3 rose\), by step 40\.",
        told[0],
    )
    assert told[1] == "grpo: not measured."
    boxes = [figures.nth(i).bounding_box() for i in range(4)]
    assert boxes[0]["y"] == boxes[1]["y"] < boxes[2]["y"] == boxes[3]["y"]
    assert boxes[3]["y"] + boxes[3]["height"] < 900  # seen without scrolling much
    assert "mean over the last tenth of the steps" in page.inner_text("#overview")
    assert "runs 4 in 2 families" in page.inner_text("#facts")
    cells = page.locator("#overview tr").filter(has_text="Held-out accuracy, in domain")
    assert re.search(r"0\.\d+ → 0\.\d+ \(0\.\d+ to 0\.\d+, 50 questions\)", cells.inner_text())
    last = page.locator("#overview tr").filter(has_text="last steps")
    assert last.locator("td").all_text_contents()[1:] == [
        "37 to 40",
        "37 to 40",
        "55 to 60",
        "37 to 40",
    ]


def test_a_narrow_window_is_not_wider_than_its_text(report, opened):
    page = opened(report)
    page.set_viewport_size({"width": 400, "height": 800})
    for view in ("overview", "curves", "words", "answers", "rollouts"):
        page.click(f"#tab-{view}")
        page.wait_for_timeout(100)
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 400, view
    page.click("#tab-overview")
    width = page.locator("#overview canvas").first.bounding_box()["width"]
    assert 250 < width < 400


def reward(page):
    return page.locator("#curves figure").filter(has_text="Reward in training")


def test_curves_are_drawn_by_step_tokens_and_time(report, opened):
    page = opened(report, "#curves")
    assert "step 60" in reward(page).inner_text()
    page.select_option("#axis", "tokens")
    text = reward(page).inner_text()
    assert "tokens 240,000" in text and "sdpo:" in text and "grpo" not in text
    page.select_option("#axis", "seconds")
    assert "time 4 min" in reward(page).inner_text()
    table = reward(page)
    table.locator("summary").click()
    table.locator("tbody tr").nth(59).wait_for()
    page.select_option("#axis", "step")
    assert "grpo:" in reward(page).inner_text()


def test_smoothing_adds_a_line_and_its_value(report, opened):
    page = opened(report, "#curves")
    assert "smoothed" not in reward(page).inner_text()
    page.focus("#smooth")
    for _ in range(90):
        page.keyboard.press("ArrowRight")
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert page.inner_text("output") == "0.90"
    value, smooth = map(
        float, re.search(r"grpo: ([\d.]+), smoothed ([\d.]+)", reward(page).inner_text()).groups()
    )
    rows = [json.loads(x) for x in (report.parent / "grpo/metrics.jsonl").read_text().splitlines()]
    rewards = [row["rollout/reward"] for row in rows if row["step"]]
    weights = [0.9 ** (40 - step) for step in range(1, 41)]
    mean = sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights)
    assert (value, smooth) == (pytest.approx(rewards[-1], abs=6e-4), pytest.approx(mean, abs=6e-4))
    score = page.locator("#curves figure").filter(has_text="Held-out accuracy, in domain")
    assert "smoothed" not in score.inner_text()  # too few points


def test_the_number_of_runs_is_named_where_some_have_ended(report, opened):
    page = opened(report, "#curves")
    assert re.search(r"sdpo: 0\.\d+ \(n = 1\)", reward(page).inner_text())
    page.uncheck(".families input >> nth=1")
    box = reward(page).locator(".u-over").bounding_box()
    reward(page).locator(".u-over").hover(position={"x": box["width"] / 3, "y": 50})
    assert re.search(r"sdpo: 0\.\d+ \(0\.\d+ to 0\.\d+, n = 3\)", reward(page).inner_text())
    score = page.locator("#curves figure").filter(has_text="Held-out accuracy, in domain")
    assert re.search(r"95 % interval 0\.\d+ to 0\.\d+, 50 questions", score.inner_text())


def test_warnings_and_alarms_are_marked_and_listed(report, opened):
    page = opened(report)
    assert "alarm: the score fell by 55%" in page.inner_text("#alarms")
    rows = page.locator("#warnings tbody tr").all_inner_texts()
    assert [row.split("\t")[:3] for row in rows] == [
        ["sdpo.0", "5 to 7", "▽ warning"],
        ["sdpo.0", "20", "▼ alarm"],
    ]
    page.click("#tab-curves")
    over = reward(page).locator(".u-over")
    at = over.bounding_box()["width"] * 19 / 59
    over.hover(position={"x": at, "y": 40})
    assert "▼ sdpo.0, step 20: alarm: the score fell by 55%" in reward(page).inner_text()
    page.uncheck("#marks")
    over.hover(position={"x": at + 1, "y": 40})
    assert "alarm" not in reward(page).inner_text()


def listed_questions(page):
    return page.locator("#questions [role=option] .preview").all_text_contents()


def asked(*names):
    return [f"What is {name}?" for name in names]


def test_answers_are_compared_question_by_question(report, opened):
    page = opened(report, "#answers")
    page.wait_for_selector("#question[data-shown='0']")
    assert listed_questions(page) == asked(*GRADES)
    tally = page.inner_text("#changes")
    assert "wrong → right: 1 · right → wrong: 1 · as before: 3" in tally
    heads = page.locator("#question section.answers h2").all_text_contents()
    assert heads == ["Before: sdpo.0, step 0 0/2", "After: sdpo.0, step 40 2/2"]
    texts = page.locator("#question section.answers pre").all_text_contents()
    assert texts == ["at 0 wait, it is wrong up"] * 2 + ["at 40 wait, it is right up"] * 2
    assert page.locator("#question .epistemic").all_text_contents() == ["wait,"] * 4
    sides = [page.locator("section.answers").nth(i).bounding_box() for i in (0, 1)]
    assert sides[0]["y"] == sides[1]["y"] and sides[0]["x"] < sides[1]["x"]


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("better", ["up"]),
        ("worse", ["down"]),
        ("same", ["right", "wrong", "half"]),
        ("right", ["right"]),
        ("wrong", ["wrong"]),
    ],
)
def test_answers_are_filtered_by_what_became_of_them(report, opened, change, names):
    page = opened(report, "#answers")
    page.select_option("#change", change)
    page.locator("#questions-count").filter(has_text=f"{len(names)} of 5 questions").wait_for()
    assert listed_questions(page) == asked(*names)


def test_answers_are_reached_by_keys_text_and_link(report, opened):
    page = opened(report, "#answers")
    page.focus("#questions")
    page.keyboard.press("ArrowDown")
    page.wait_for_selector("#question[data-shown='1']")
    assert page.get_attribute("#questions", "aria-activedescendant") == "question-1"
    page.focus("#tab-answers")
    page.keyboard.press("j")
    page.wait_for_selector("#question[data-shown='2']")
    page.keyboard.press("/")
    page.keyboard.type("IS wrong down")
    page.locator("#questions-count").filter(has_text="1 of 5 questions").wait_for()
    assert page.locator("#question mark").all_text_contents() == ["is wrong down"]
    link = page.url.partition("#")[2]
    assert link == "answers?text=IS+wrong+down&open=1"
    # Two runs after training, side by side.
    page = opened(report, "#answers?before=1&after=5&open=3")
    heads = page.locator("#question section.answers h2").all_text_contents()
    assert heads == ["Before: sdpo.0, step 40 0/2", "After: sdpo.2, step 60 0/2"]
    page = opened(report, "#answers?before=99&change=no&open=77")
    assert page.get_attribute("#question", "data-shown") == "0"


def test_runs_without_answers_say_so(tmp_path, opened):
    page = opened(written(tmp_path, report_runs.write(tmp_path / "run")), "#answers")
    assert "kept no held-out answers" in page.inner_text("#answers")
