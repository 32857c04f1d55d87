#!/usr/bin/env bash
# Trains the tiny reasoner with every remedy, control and baseline, and keeps what each run measured.
#   configs/tiny/league.sh OUT SEEDS AT_A_TIME [ARM...]     e.g. runs/league "0 1 2" 6
# All arms have the same steps, rates and tokens per step (configs/tiny/sdpo.py).
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1 seeds=$2 at_a_time=$3
shift 3

declare -A arms=(
  [solution]="--target.context solution"
  [grpo]="--loss.distillation 0"
  [unrelated]="--target.context unrelated"
  [unrelated_answer]="--target.context unrelated --reprompt.strip_thinking"
  [answer]="--reprompt.strip_thinking"
  [plain]="--target.context plain --teacher.kind initial"
  [wrong_context]="--target.context wrong"
  [pointwise_information]="--target.rule pointwise_information"
  [success_minus_failure]="--target.rule success_minus_failure"
  [plain_contrast]="--target.rule plain_contrast"
  [disagreement]="--target.rule disagreement"
  [trust_region]="--target.rule trust_region --target.strength 0.5"
  [away]="--target.rule away --target.support 0.1"
  [learn_wrong]="--loss.learn_from wrong"
  [pivotal]="--loss.learn_from pivotal"
  [early]="--loss.learn_from early"
  [contrast_credit]="--loss.distillation 0 --policy.credit contrast"
  [signed_gap]="--loss.distillation 0 --policy.credit signed_gap"
  [unlikely]="--loss.distillation 0 --policy.credit unlikely"
  [epistemic_masked]="--loss.token_weights epistemic"
)
names=("$@")
((${#names[@]})) || mapfile -t names < <(printf '%s\n' "${!arms[@]}" | sort)

mkdir -p "$out"
for seed in $seeds; do
  for arm in "${names[@]}"; do
    while (($(jobs -rp | wc -l) >= at_a_time)); do wait -n || true; done
    # shellcheck disable=SC2086  # the arms are words
    python3 -m sdjax.main --config configs/tiny/sdpo.py --out "$out/${arm}_$seed" --seed "$seed" \
      --data.seed "$seed" --log.progress False --log.rollouts False ${arms[$arm]} \
      >"$out/${arm}_$seed.log" 2>&1 || echo "$arm $seed failed: $(tail -1 "$out/${arm}_$seed.log")" &
  done
done
wait
