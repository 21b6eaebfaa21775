#!/usr/bin/env bash
# What makes PPO without clipping collapse? The code of July 2017, one change at a time, on three
# tasks whose returns have no lower bound or much room below a good policy's.
#     bash benchmark/no_clip.sh [flags of launch.py]      SEEDS=3 bash benchmark/no_clip.sh
#     python benchmark/report.py no-clip
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Reacher Walker2d"
FLAGS_2017="--no-norm-reward --no-anneal-lr --init normc --adam-eps 1e-8 --no-bootstrap-truncated"
SETTINGS=(
  "2017-code              ppo_noclip.py"
  "annealed-steps         ppo_noclip.py --anneal-lr"
  "scaled-rewards         ppo_noclip.py --norm-reward"
  "raw-advantages         ppo_noclip.py --norm-adv none"
  "minibatch-advantages   ppo_noclip.py --norm-adv minibatch"
  "raw-observations       ppo_noclip.py --no-norm-obs"
  "torch-init             ppo_noclip.py --init torch"
  "30-epochs              ppo_noclip.py --update-epochs 30"
  "larger-steps           ppo_noclip.py --learning-rate 1e-3"
  "larger-steps-clipped   ppo_continuous.py --learning-rate 1e-3"
)

for seed in $(seq "${SEEDS:-2}"); do
  for task in $TASKS; do
    for line in "${SETTINGS[@]}"; do
      read -r setting script flags <<< "$line"
      echo python $script $FLAGS_2017 $flags --env-id "$task" --seed "$seed" \
        --run-dir "runs/no-clip/$setting/$task/$seed"
    done
  done
done | python benchmark/launch.py "$@"
