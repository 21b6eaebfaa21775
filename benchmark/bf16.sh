#!/usr/bin/env bash
# Does --bf16 change the scores? Both precisions, 500,000 steps, on Pong, which takes longer to
# learn, 2,000,000; alpha goes to 0 in them.
#     bash benchmark/bf16.sh [flags of launch.py]      SEEDS=1 bash benchmark/bf16.sh
#     python benchmark/report.py bf16
set -euo pipefail
cd "$(dirname "$0")/.."

for seed in $(seq "${SEEDS:-3}"); do
  for game in ${GAMES:-Pong Breakout CrazyClimber}; do
    steps=$([ "$game" = Pong ] && echo 2000000 || echo 500000)
    for precision in float32 bf16; do
      flags=$([ "$precision" = bf16 ] && echo --bf16 || echo --no-bf16)
      echo python ppo_atari.py $flags --env-id "$game" --seed "$seed" --total-timesteps $steps \
        --run-dir "runs/bf16/$precision/$game/$seed"
    done
  done
done | python benchmark/launch.py "$@"
