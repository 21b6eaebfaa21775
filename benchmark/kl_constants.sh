#!/usr/bin/env bash
# Section 4 says that 1.5, 2 and the first beta do not matter: one at a time, 7 tasks, 3 seeds.
#     bash benchmark/kl_constants.sh [flags of launch.py]      SEEDS=1 bash benchmark/kl_constants.sh
#     python benchmark/report.py kl-constants
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
SETTINGS=(
  "defaults        ppo_klpen.py"
  "tolerance-1.25  ppo_klpen.py --kl-tolerance 1.25"
  "tolerance-2     ppo_klpen.py --kl-tolerance 2"
  "factor-1.5      ppo_klpen.py --kl-factor 1.5"
  "factor-4        ppo_klpen.py --kl-factor 4"
  "beta-0.1        ppo_klpen.py --kl-coef 0.1"
  "beta-10         ppo_klpen.py --kl-coef 10"
)

for seed in $(seq "${SEEDS:-3}"); do
  for task in $TASKS; do
    for line in "${SETTINGS[@]}"; do
      read -r setting command <<< "$line"
      echo python $command --env-id "$task" --seed "$seed" \
        --run-dir "runs/kl-constants/$setting/$task/$seed"
    done
  done
done | python benchmark/launch.py "$@"
