"""A start for your own training: SDPO and GRPO in equal parts, on rows and a reward of your own.

    python -m sdjax.main --config configs/own/mine.py
    python -m sdjax.main --config configs/own/mine.py --steps 20 --out runs/mine_20

As it is, a model of 5 million parameters solves number puzzles, in a few minutes on two cores.
mine.jsonl has the rows, and mine_reward.py the reward. `--help` after the command lists every
field, and a field that is not named here has the default that --help shows.
"""

from pathlib import Path

from mine_reward import reward

from sdjax.config import Checkpoint, Eval, Loss, Model, Optim, Reprompt, Rollout, Teacher, Train
from sdjax.tasks.questions import Questions

config = Train(
    # The run's directory. Another training needs another one.
    out="runs/mine",
    task=Questions(
        # A .jsonl, .json, .parquet or .csv file, or a data set of the hub such as
        # "openai/gsm8k:main/train". A question is a text or a list of messages.
        train=str(Path(__file__).with_name("mine.jsonl")),
        # Rows that are evaluated and never trained on.
        held_out=16,
        # Decides what is correct too. Without it, rows with an answer have a grader of the package.
        grader=reward,
    ),
    steps=4,
    # A hub id such as "Qwen/Qwen3-0.6B" (remove compute_dtype and remat then), a Hugging Face
    # folder, or a .gguf file. package:sdjax.tiny comes with sdjax and knows only number puzzles.
    model=Model(path="package:sdjax.tiny", compute_dtype="float32", remat="none"),
    # A step samples 4 x 4 completions. Prompts that are longer than the limit are left out.
    rollout=Rollout(
        prompts_per_step=4, group_size=4, max_prompt_tokens=64, max_completion_tokens=256
    ),
    # The teacher reads the prompt and a correct completion of the same question.
    reprompt=Reprompt(max_tokens=352),
    # The model before training. "ema" follows the student slowly.
    teacher=Teacher(kind="initial"),
    # 1 is SDPO, 0 is GRPO.
    loss=Loss(distillation=0.5),
    # For a pretrained model, 1e-6 to 1e-5 is usual. A larger microbatch is faster on a GPU.
    optim=Optim(lr=4e-4, warmup_steps=2, row_tokens=768, microbatch=2),
    # Before and after the training: one answer to each held-out question. every=10 adds one
    # every 10 steps.
    eval=Eval(every=0, k=1, max_completion_tokens=256, temperature=1.0, top_p=1.0),
    # every=0 keeps no checkpoints, so the run cannot be resumed. The trained model is in
    # runs/mine/model either way.
    checkpoint=Checkpoint(every=0),
)
