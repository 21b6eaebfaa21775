#!/usr/bin/env bash
# ppo_continuous.py on the seven MuJoCo tasks of the paper, 1M steps each: Figure 3's PPO curves.
#     bash benchmark/mujoco.sh [flags of launch.py]      SEEDS=10 bash benchmark/mujoco.sh
#     python benchmark/report.py mujoco
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"

for seed in $(seq "${SEEDS:-3}"); do
  for task in $TASKS; do
    echo python ppo_continuous.py --env-id "$task" --seed "$seed" \
      --run-dir "runs/mujoco/ppo_continuous/$task/$seed"
  done
done | python benchmark/launch.py "$@"
