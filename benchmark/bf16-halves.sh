#!/usr/bin/env bash
# Where does --bf16 lose what it loses on KungFuMaster? In neither, both or one of rollout and
# update. On hardware for bfloat16; not on a cluster: bf16_half.py takes ppo_atari.py from beside it,
# and launch.py sends one script.
#     bash benchmark/bf16-halves.sh [flags of launch.py]     SEEDS=2 bash benchmark/bf16-halves.sh
#     python benchmark/report.py bf16-halves
set -euo pipefail
cd "$(dirname "$0")/.."

half=benchmark/bf16_half.py
for seed in $(seq 5 $((4 + ${SEEDS:-10}))); do
  for game in ${GAMES:-KungFuMaster}; do
    for run in "float32 ppo_atari.py --no-bf16" "bf16 ppo_atari.py --bf16" \
      "bf16-rollout $half rollout --bf16" "bf16-update $half update --bf16"; do
      echo python ${run#* } --env-id "$game" --seed "$seed" --total-timesteps 200000 \
        --run-dir "runs/bf16-halves/${run%% *}/$game/$seed"
    done
  done
done | python benchmark/launch.py "$@"
