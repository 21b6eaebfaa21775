#!/usr/bin/env bash
# Four rows of Table 1 by the code of July 2017: does the ranking survive what the paper leaves out?
#     bash benchmark/strict.sh [flags of launch.py]      SEEDS=10 bash benchmark/strict.sh
#     python benchmark/report.py strict
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
STRICT="--no-norm-reward --no-anneal-lr --init normc --adam-eps 1e-8 --no-bootstrap-truncated"
SETTINGS=(
  "no-clip           ppo_noclip.py"
  "clip-0.2          ppo_continuous.py --clip-coef 0.2"
  "adaptive-kl-0.01  ppo_klpen.py --kl-target 0.01"
  "fixed-kl-1        ppo_klpen.py --no-adapt-kl-coef --kl-coef 1"
)

for seed in $(seq "${SEEDS:-3}"); do
  for task in $TASKS; do
    for line in "${SETTINGS[@]}"; do
      read -r setting script flags <<< "$line"
      echo python $script $STRICT $flags --env-id "$task" --seed "$seed" \
        --run-dir "runs/strict/$setting/$task/$seed"
    done
  done
done | python benchmark/launch.py "$@"
