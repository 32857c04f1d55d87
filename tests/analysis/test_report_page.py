"""In a headless Chromium, a reader can use every view, filter and link of the report."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import report_runs
import tiny
from report_browser import SHOWN, count, listed, open_rollout, said, tokens, written
from sums import job

from sdjax.jobs import train_job

pytestmark = pytest.mark.heavy  # a browser


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory):
    """Returns a report of two runs and their rollouts in order."""
    folder = tmp_path_factory.mktemp("synthetic")
    runs = [report_runs.write(folder / f"sdpo.{seed}", seed=seed) for seed in (0, 1)]
    rows = [
        {"run": number} | json.loads(line)
        for number, run in enumerate(runs)
        for line in (run / "rollouts.jsonl").read_text().splitlines()
    ]
    return written(folder, *runs), rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the run directories of a real training of a tiny model, and the report.

    Beside it stands one with the same files but for what only a run with a teacher keeps.
    """
    folder = tmp_path_factory.mktemp("trained")
    cfg = job(tiny.model_folder(folder / "tiny", num_hidden_layers=1), folder / "sdpo")
    train_job.run(replace(cfg, steps=2, checkpoint=replace(cfg.checkpoint, every=0, export=False)))
    shutil.copytree(folder / "sdpo", folder / "grpo")
    rows = [json.loads(line) for line in (folder / "sdpo" / "rollouts.jsonl").open()]
    of_teacher = ("teacher", "reprompt", "demonstration", "feedback_used", "distilled")
    kept = [{k: v for k, v in row.items() if not k.startswith(of_teacher)} for row in rows]
    (folder / "grpo" / "rollouts.jsonl").write_text(report_runs.text_of(kept))
    runs = [folder / "sdpo", folder / "grpo"]
    return runs, written(folder, *runs)


def test_every_view_of_a_real_run_opens(trained, opened):
    runs, file = trained
    page = opened(file)
    assert page.inner_text("#overview").count("sdpo") >= 2
    facts = page.inner_text("#facts")
    assert all(fact in facts for fact in ("task Arithmetic", "learning rate 0.001", "steps 2"))
    assert "program sdjax" in facts and "devices" in facts and "duration" in facts
    assert re.search(
        r"In-domain .+ \(6 questions, 95 % interval 0\.\d+ to", page.inner_text(".told")
    )
    page.click("#tab-answers")
    page.wait_for_selector("#question[data-shown='0']")
    assert page.locator("#questions [role=option]").count() == 6
    assert page.locator("#question .answer").count() == 4
    page.click("#tab-curves")
    titles = page.locator("#curves figcaption").all_text_contents()
    assert "Reward in training (per completion)" in titles
    assert any(title.startswith("Held-out accuracy, in domain") for title in titles)
    assert page.locator("#curves figure canvas").count() == len(titles) >= 6
    page.click("#tab-words")
    assert page.locator("#words tbody tr").count() == 11
    page.click("#tab-rollouts")
    assert count(page) == 2 * 2 * 16
    first = json.loads((runs[0] / "rollouts.jsonl").read_text().splitlines()[0])
    page.wait_for_selector("#detail[data-shown='0']")
    reads = page.locator("#detail pre").all_text_contents()
    assert len(reads) == 2 and first["answer"] in page.inner_text("#detail .graded")
    open_rollout(page, 32)
    assert page.locator("#detail pre").count() == 1
    assert "No teacher ran" in page.inner_text("#detail")


def drawn(page):
    """Returns the number of different pixels in the first curve."""
    return page.evaluate(
        """() => {
          const canvas = document.querySelector("#curves figure canvas");
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          return new Set(new Uint32Array(data.buffer)).size;
        }"""
    )


def test_curves_are_drawn_with_their_values_below(synthetic, opened):
    file, _ = synthetic
    page = opened(file, "#curves")
    assert drawn(page) > 10
    figure = page.locator("#curves figure").filter(has_text="Reward in training")
    assert re.search(r"step 10\s*sdpo: 0\.\d+ \(0\.\d+ to 0\.\d+, n = 2\)", figure.inner_text())
    page.select_option("#band", "none")
    assert re.search(r"sdpo: 0\.\d+ \(n = 2\)", figure.inner_text())
    page.select_option("#band", "half")
    assert re.search(r"sdpo: 0\.\d+ \(\S+ to \S+, n = 2\)", figure.inner_text())
    page.check("#single")
    figure.locator(".u-over").hover(position={"x": 8, "y": 50})
    assert "step 1\n" in figure.inner_text()
    figure.locator("summary").click()
    figure.locator("tbody tr").nth(9).wait_for()
    assert figure.locator("tbody tr").count() == 10
    before = page.locator("#curves figure").count()
    page.select_option("#more", "optim/grad_norm")
    page.locator("#curves figure").nth(before).wait_for()
    assert page.locator("#curves figcaption").first.text_content() == "optim/grad_norm"
    page.uncheck(".families input")
    assert page.locator("#curves figure canvas").count() == 0


def test_words_are_counted_in_the_chosen_set_and_unit(synthetic, opened):
    file, _ = synthetic
    page = opened(file, "#words")

    def wait_row():
        row = page.locator("#words tbody tr").filter(has=page.get_by_text("wait", exact=True))
        return row.locator("td").all_text_contents()[:3]

    assert wait_row() == ["2", "0.2", "\u22121.8"]
    page.select_option("#word-unit", "count")
    assert wait_row() == ["40", "4", "\u221236"]
    page.select_option("#word-set", "training, first and last tenth of the steps")
    assert wait_row() != ["40", "4", "\u221236"]
    page.select_option("#word-unit", "push")
    assert all(re.fullmatch("\u2212[12]\\.\\d+", cell) for cell in wait_row()[:2])
    page.select_option("#word-lexicon", "word")
    assert page.locator("#words tbody tr").count() == 11


def has(row, word):
    return word in row["completion"]


FILTERS = [
    ({"#run": "1"}, lambda r: r["run"] == 1),
    ({"#step0": "3", "#step1": "4"}, lambda r: 3 <= r["step"] <= 4),
    ({"#correct": "1"}, lambda r: r["correct"]),
    ({"#correct": "0"}, lambda r: not r["correct"]),
    ({"#length0": "30", "#length1": "40"}, lambda r: 30 <= len(r["tokens"]) <= 40),
    ({"#word": "0"}, lambda r: has(r, "wait")),
    ({"#word": "none"}, lambda r: not any(has(r, w) for w in report_runs.LEXICON)),
    ({"#kept": "tops"}, lambda r: "teacher_top" in r),
    ({"#text": "Seven PLUS"}, lambda r: has(r, "seven plus")),
    ({"#text": "no such words"}, lambda r: False),
    (
        {"#run": "0", "#correct": "1", "#word": "3", "#step0": "5"},
        lambda r: r["run"] == 0 and r["correct"] and has(r, "maybe") and r["step"] >= 5,
    ),
]


def test_filters_show_exactly_what_passes(synthetic, opened):
    file, rows = synthetic
    page = opened(file, "#rollouts")
    assert count(page) == len(rows) == 160
    for chosen, passes in FILTERS:
        page.click("#clear")
        said(page, "160 rollouts")
        for control, value in chosen.items():
            if control in ("#run", "#correct", "#word", "#kept"):
                page.select_option(control, value)
            else:
                page.fill(control, value)
        wanted = [i for i, row in enumerate(rows) if passes(row)]
        said(page, f"{len(wanted)} of 160 rollouts")
        seen = listed(page)
        assert seen == wanted[: len(seen)] and (seen or not wanted), chosen
    assert "No rollout passes" not in page.inner_text("#detail")


def test_rollouts_can_be_put_in_order(synthetic, opened):
    file, rows = synthetic
    page = opened(file, "#rollouts")
    lengths = [len(row["tokens"]) for row in rows]
    gaps = [np.subtract(row["teacher_logprobs"], row["student_logprobs"]) for row in rows]
    push = [gap[row["epistemic"]].mean() for gap, row in zip(gaps, rows, strict=True)]
    for order, key in (("long", np.negative(lengths)), ("epistemic", push)):
        page.select_option("#order", order)
        page.wait_for_selector(f"#row-{int(np.argmin(key))}[aria-posinset='1']")
        seen = [key[i] for i in listed(page)]
        # The page rounds to hundredths of a nat.
        assert len(seen) > 10 and np.all(np.diff(seen) >= -0.011)


def test_arrow_keys_go_through_rollouts_and_tokens(synthetic, opened):
    page = opened(synthetic[0], "#rollouts")
    page.focus("#list")
    for _ in range(30):
        page.keyboard.press("ArrowDown")
    page.wait_for_selector("#detail[data-shown='30']")
    assert page.locator("[role=option][aria-selected=true]").get_attribute("data-i") == "30"
    assert page.get_attribute("#list", "aria-activedescendant") == "row-30"
    page.keyboard.press("End")
    page.wait_for_selector("#detail[data-shown='159']")
    page.keyboard.press("ArrowUp")
    page.wait_for_selector("#detail[data-shown='158']")
    page.keyboard.press("Home")
    page.wait_for_selector("#detail[data-shown='0']")
    page.focus("#completion")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert "token 2 of" in page.inner_text("#tip")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def red_and_blue(page, t):
    style = page.locator(f"#completion [data-t='{t}']").evaluate("e => e.style.backgroundColor")
    red, _, blue = map(int, re.match(r"rgba\((\d+), (\d+), (\d+)", style).groups())
    return red, blue


def test_tokens_show_the_teachers_push_the_words_and_both_models_alternatives(synthetic, opened):
    file, rows = synthetic
    page = opened(file, "#rollouts")
    row = rows[3]
    open_rollout(page, 3)
    assert "".join(tokens(page)) == "".join(row["pieces"])
    push = np.subtract(row["teacher_logprobs"], row["student_logprobs"])
    red, blue = red_and_blue(page, int(push.argmin()))
    assert red > blue
    red, blue = red_and_blue(page, int(push.argmax()))
    assert blue > red
    marked = page.eval_on_selector_all(f"{SHOWN}.epistemic", "e => e.map(x => +x.dataset.t)")
    assert marked == row["epistemic"]
    t = row["epistemic"][0]
    page.hover(f"#completion [data-t='{t}']")
    tip = page.inner_text("#tip").replace("\u2212", "-")
    assert f"token {t + 1} of {len(row['pieces'])}" in tip and "epistemic" in tip
    student, difference = (
        float(re.search(rf"{what}\s+([+-]?[\d.]+) nats", tip)[1])
        for what in ("student", "teacher - student")
    )
    assert student == pytest.approx(row["student_logprobs"][t], abs=0.01 + 0.005 * abs(student))
    assert difference == pytest.approx(push[t], abs=0.011 + 0.005 * abs(difference))
    for who in ("student", "teacher"):
        assert f"{who}'s likeliest" in tip
        for text, _ in row[f"{who}_top"][t]:
            assert json.dumps(text) in tip
    page.hover("#title")
    assert page.is_hidden("#tip")
    page.select_option("#colour", "student_entropy")
    red, blue = red_and_blue(page, int(np.argmax(row["student_entropy"])))
    assert blue > red
    assert "0" in page.inner_text(".legend") and "nats" in page.inner_text(".legend")


def test_both_prompts_stand_side_by_side_and_what_only_the_teacher_reads_is_marked(
    synthetic, opened
):
    file, rows = synthetic
    page = opened(file, "#rollouts")
    page.wait_for_selector(SHOWN)
    student, teacher = page.locator("#detail pre").all_text_contents()
    assert (student, teacher) == (rows[0]["prompt"], rows[0]["reprompt"])
    assert "A correct solution: it is so." in page.inner_text("#detail mark")
    boxes = [page.locator("#detail pre").nth(i).bounding_box() for i in (0, 1)]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]


def test_a_link_leads_to_a_view_its_filters_and_a_rollout(synthetic, opened):
    file, rows = synthetic
    page = opened(file, "#rollouts?correct=1&text=plus&open=2")
    wanted = [i for i, r in enumerate(rows) if r["correct"] and "plus" in r["completion"]]
    assert count(page) == len(wanted)
    page.click(f"#row-{wanted[1]}")
    page.wait_for_selector(f"#detail[data-shown='{wanted[1]}']")
    link = page.url.partition("#")[2]
    assert f"open={wanted[1]}" in link and "correct=1" in link and "text=plus" in link
    assert page.locator("#completion .found").count() >= 1
    page = opened(file, f"#{link}")
    assert page.get_attribute("#detail", "data-shown") == str(wanted[1])
    page = opened(file, "#nonsense?open=x&run=77")
    assert page.is_visible("#overview")
    page = opened(file, "#rollouts?open=99999&run=77&order=no")
    assert count(page) == len(rows)


def test_the_page_follows_the_theme(synthetic, opened):
    page = opened(synthetic[0], "#curves")
    shade = "getComputedStyle(document.documentElement).backgroundColor"
    page.emulate_media(color_scheme="dark")
    dark = page.evaluate(shade)
    page.emulate_media(color_scheme="light")
    light = page.evaluate(shade)
    assert dark != light
    page.click("#theme")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(shade) == light
    page.click("#theme")
    assert page.evaluate(shade) == dark and page.inner_text("#theme") == "Theme: dark"
