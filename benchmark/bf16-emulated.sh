#!/usr/bin/env bash
# bf16.sh where no hardware computes in bfloat16 (bf16.py): does it change the scores? Games that
# learn early, 200,000 steps in which alpha goes to 0. Not on a cluster: bf16.py takes ppo_atari.py
# from beside it, and launch.py sends one script.
#     bash benchmark/bf16-emulated.sh [flags of launch.py]      SEEDS=1 bash benchmark/bf16-emulated.sh
#     python benchmark/report.py bf16-emulated
set -euo pipefail
cd "$(dirname "$0")/.."

for seed in $(seq "${SEEDS:-4}"); do
  for game in ${GAMES:-Assault Krull KungFuMaster UpNDown}; do
    for run in "float32 ppo_atari.py" "bf16 benchmark/bf16.py --bf16"; do
      echo python ${run#* } --env-id "$game" --seed "$seed" --total-timesteps 200000 \
        --run-dir "runs/bf16-emulated/${run%% *}/$game/$seed"
    done
  done
done | python benchmark/launch.py "$@"
