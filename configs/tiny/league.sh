#!/usr/bin/env bash
# Trains the tiny reasoner with every remedy, control and baseline, and tabulates what was measured.
#   configs/tiny/league.sh OUT SEEDS AT_A_TIME [ARM...]     e.g. runs/league "0 1 2" 6
# ARM: an arm, or a set of arms: remedies (the default), explain, smollm2.
# FLAGS: options for every training, e.g. FLAGS="--model.compute_dtype float32".
# TRACES_FLAGS, BASE_FLAGS: options for the traces and the base models that some arms of explain
# need; these are trained first.
# DRY_RUN=1: prints the commands and runs none.
# OUT gets a run directory ARM_SEED of each, league.md, league.json and plots/. All arms of the
# miniature have the same steps, rates and questions per step (configs/tiny/sdpo.py), except those
# that end in _longer.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=$1 seeds=$2 at_a_time=$3
shift 3

# An arm is options, and may begin with a config other than configs/tiny/sdpo.py.
contexts=configs/tiny/contexts.py
sums=configs/smollm2/sdpo_chain_sum.py largest=configs/smollm2/sdpo_largest_number.py
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
  [pivotal_over_mean]="--loss.learn_from pivotal_over_mean"
  [early]="--loss.learn_from early"
  [before_drift]="--loss.learn_from before_drift"
  [contrast_credit]="--loss.distillation 0 --policy.credit contrast"
  [contrast_means]="--loss.distillation 0 --policy.credit contrast_means"
  [signed_gap]="--loss.distillation 0 --policy.credit signed_gap"
  [unlikely]="--loss.distillation 0 --policy.credit unlikely"
  [epistemic_masked]="--loss.token_weights epistemic"
  # What makes the unrelated demonstration work?
  [unrelated_failed]="$contexts --target.context unrelated_failed"
  [answer_masked]="--reprompt.strip_thinking --loss.token_weights epistemic"
  [keep_trying]="$contexts --target.context keep_trying"
  [taught_keep_trying]="$contexts --target.context keep_trying"
  [taught_unrelated]="--target.context unrelated"
  [gives_up_solution]="--target.context solution"
  [gives_up_unrelated]="--target.context unrelated"
  [gives_up_unrelated_answer]="--target.context unrelated --reprompt.strip_thinking"
  [gives_up_grpo]="--loss.distillation 0"
  [unrelated_longer]="--target.context unrelated --steps 240"
  [unrelated_answer_longer]="--target.context unrelated --reprompt.strip_thinking --steps 240"
  [grpo_longer]="--loss.distillation 0 --steps 240"
  [smollm2_sums]="$sums --target.context solution"
  [smollm2_sums_unrelated]="$sums --target.context unrelated"
  [smollm2_sums_grpo]="$sums --loss.distillation 0"
  [smollm2_largest]="$largest --target.context solution"
  [smollm2_largest_unrelated]="$largest --target.context unrelated"
  [smollm2_largest_grpo]="$largest --loss.distillation 0"
)
declare -A sets=(
  [remedies]="grpo solution answer epistemic_masked disagreement trust_region learn_wrong pivotal
    pivotal_over_mean early before_drift wrong_context success_minus_failure pointwise_information
    plain_contrast away plain unrelated unrelated_answer contrast_credit contrast_means signed_gap
    unlikely"
  [explain]="grpo solution answer answer_masked unrelated unrelated_answer unrelated_failed
    wrong_context keep_trying taught_keep_trying taught_unrelated gives_up_solution
    gives_up_unrelated gives_up_unrelated_answer gives_up_grpo unrelated_longer
    unrelated_answer_longer grpo_longer"
  [smollm2]="smollm2_sums smollm2_sums_unrelated smollm2_sums_grpo smollm2_largest
    smollm2_largest_unrelated smollm2_largest_grpo"
)
# Base models by the beginning of an arm's name: how their traces differ (configs/tiny/traces.py).
declare -A bases=([taught]="--instructed 0.2" [gives_up]="--guided_gives_up")

names=()
for name in "${@:-remedies}"; do
  for arm in ${sets[$name]:-$name}; do
    [[ -v arms[$arm] ]] || {
      echo "no arm $arm: one of $(printf '%s\n' "${!arms[@]}" "${!sets[@]}" | sort | xargs)" >&2
      exit 2
    }
    [[ " ${names[*]} " == *" $arm "* ]] || names+=("$arm")
  done
done

job() { # LOG CONFIG OPTIONS
  local log=$1
  if [[ ${DRY_RUN:-} ]]; then
    printf '%q ' python3 -m sdjax.main --config "${@:2}"
    echo
  elif ! python3 -m sdjax.main --config "${@:2}" >"$log" 2>&1; then
    echo "$log: failed: $(tail -1 "$log")" >&2
    return 1
  fi
}

base_of() { # ARM: prints the name of the base model that it starts from, if it has its own
  for base in "${!bases[@]}"; do [[ $1 != "${base}"_* ]] || echo "$base"; done
}

make_base() { # BASE
  local at=$out/bases/$1
  [[ -d $at/base/model ]] && return
  # What an interrupted training left.
  [[ ${DRY_RUN:-} ]] || rm -rf "$at"
  # shellcheck disable=SC2086  # the options are words
  job "$out/traces_$1.log" configs/tiny/traces.py --out "$at/traces" ${bases[$1]} ${TRACES_FLAGS:-}
  # shellcheck disable=SC2086
  job "$out/base_$1.log" configs/tiny/base.py --out "$at/base" \
    --source "$at/traces/traces.jsonl" --model.path "$at/traces/model" ${BASE_FLAGS:-}
}

[[ ${DRY_RUN:-} ]] || mkdir -p "$out"
for base in $(for arm in "${names[@]}"; do base_of "$arm"; done | sort -u); do
  make_base "$base"
done
for seed in $seeds; do
  for arm in "${names[@]}"; do
    while (($(jobs -rp | wc -l) >= at_a_time)); do wait -n || true; done
    read -ra options <<<"${arms[$arm]}"
    [[ ${options[0]} == *.py ]] || options=(configs/tiny/sdpo.py "${options[@]}")
    base=$(base_of "$arm")
    # shellcheck disable=SC2086  # FLAGS are words
    job "$out/${arm}_$seed.log" "${options[@]}" --out "$out/${arm}_$seed" --seed "$seed" \
      --data.seed "$seed" --log.progress False --log.rollouts False --eval.fork_rate \
      ${base:+--model.path "$out/bases/$base/base/model"} ${FLAGS:-} &
  done
done
wait
[[ ${DRY_RUN:-} ]] || python3 dev/league_table.py "$out"
