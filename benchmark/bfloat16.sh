#!/usr/bin/env bash
# Does --bf16 change the scores? On hardware for it. Games that learn early, 200,000 steps in which
# alpha goes to 0. FIRST is the first seed.
#     bash benchmark/bfloat16.sh [flags of launch.py]       FIRST=8 SEEDS=2 bash benchmark/bfloat16.sh
#     python benchmark/report.py bfloat16
set -euo pipefail
cd "$(dirname "$0")/.."

first=${FIRST:-5}
for seed in $(seq "$first" $((first + ${SEEDS:-3} - 1))); do
  for game in Assault Krull KungFuMaster UpNDown; do
    for run in "float32 --no-bf16" "bf16 --bf16"; do
      echo python ppo_atari.py ${run#* } --env-id "$game" --seed "$seed" \
        --total-timesteps 200000 --run-dir "runs/bfloat16/${run%% *}/$game/$seed"
    done
  done
done | python benchmark/launch.py "$@"
