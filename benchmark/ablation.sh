#!/usr/bin/env bash
# What is L^CLIP's, and what its company's: the defaults with one auxiliary changed at a time, with
# the clip and without it, 4 tasks, 3 seeds.
#     bash benchmark/ablation.sh [flags of launch.py]      SEEDS=1 bash benchmark/ablation.sh
#     python benchmark/report.py ablation
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper Walker2d InvertedDoublePendulum"
SETTINGS=(
  "defaults"
  "raw-observations      --no-norm-obs"
  "raw-rewards           --no-norm-reward"
  "raw-advantages        --norm-adv none"
  "minibatch-advantages  --norm-adv minibatch"
  "constant-steps        --no-anneal-lr"
  "no-bootstrap          --no-bootstrap-truncated"
  "normc-init            --init normc"
  "torch-init            --init torch"
  "adam-eps-1e-8         --adam-eps 1e-8"
  "clip-vloss-0.2        --clip-vloss 0.2"
  "max-grad-norm-0.5     --max-grad-norm 0.5"
  "clip-actions          --clip-actions"
)

for seed in $(seq "${SEEDS:-3}"); do
  for task in $TASKS; do
    for line in "${SETTINGS[@]}"; do
      read -r setting flags <<< "$line"
      for script in "clip ppo_continuous.py" "no-clip ppo_noclip.py"; do
        read -r kind script <<< "$script"
        echo python $script $flags --env-id "$task" --seed "$seed" \
          --run-dir "runs/ablation/$setting-$kind/$task/$seed"
      done
    done
  done
done | python benchmark/launch.py "$@"
