#!/usr/bin/env bash
# Table 1 of the paper by the scripts' defaults: its 11 objectives and two that it mentions without
# numbers, 7 tasks, 5 seeds, 1M steps each.
#     bash benchmark/table1.sh [flags of launch.py]      SEEDS=1 bash benchmark/table1.sh
#     python benchmark/report.py table1
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
SETTINGS=(
  "no-clip            ppo_noclip.py"
  "pg                 ppo_noclip.py --surrogate pg"
  "clip-0.1           ppo_continuous.py --clip-coef 0.1"
  "clip-0.2           ppo_continuous.py --clip-coef 0.2"
  "clip-0.3           ppo_continuous.py --clip-coef 0.3"
  "log-clip-0.2       ppo_continuous.py --clip-coef 0.2 --clip-log-ratio"
  "adaptive-kl-0.003  ppo_klpen.py --kl-target 0.003"
  "adaptive-kl-0.01   ppo_klpen.py --kl-target 0.01"
  "adaptive-kl-0.03   ppo_klpen.py --kl-target 0.03"
  "fixed-kl-0.3       ppo_klpen.py --no-adapt-kl-coef --kl-coef 0.3"
  "fixed-kl-1         ppo_klpen.py --no-adapt-kl-coef --kl-coef 1"
  "fixed-kl-3         ppo_klpen.py --no-adapt-kl-coef --kl-coef 3"
  "fixed-kl-10        ppo_klpen.py --no-adapt-kl-coef --kl-coef 10"
)

for seed in $(seq "${SEEDS:-5}"); do
  for task in $TASKS; do
    for line in "${SETTINGS[@]}"; do
      read -r setting command <<< "$line"
      echo python $command --env-id "$task" --seed "$seed" \
        --run-dir "runs/table1/$setting/$task/$seed"
    done
  done
done | python benchmark/launch.py "$@"
