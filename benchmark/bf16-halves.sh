#!/usr/bin/env bash
# Where does --bf16 lose what it loses on KungFuMaster? bf16.sh's runs with only the rollout, or only
# the update, in bfloat16, beside those that it left. On hardware for bfloat16; not on a cluster:
# bf16_half.py takes ppo_atari.py from beside it, and launch.py sends one script.
#     bash benchmark/bf16-halves.sh [flags of launch.py]     SEEDS=2 bash benchmark/bf16-halves.sh
#     python benchmark/report.py bf16
set -euo pipefail
cd "$(dirname "$0")/.."

first=${FIRST:-5}
for seed in $(seq "$first" $((first + ${SEEDS:-10} - 1))); do
  for game in ${GAMES:-KungFuMaster}; do
    for half in rollout update; do
      echo python benchmark/bf16_half.py "$half" --bf16 --env-id "$game" --seed "$seed" \
        --total-timesteps 200000 --run-dir "runs/bf16/bf16-$half/$game/$seed"
    done
  done
done | python benchmark/launch.py "$@"
