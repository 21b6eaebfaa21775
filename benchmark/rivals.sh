#!/usr/bin/env bash
# Figure 3 of the paper: PPO and its rivals, 7 tasks, 1M steps each. Seeds first: whatever has been
# done when it is stopped is a whole figure of fewer seeds.
#     bash benchmark/rivals.sh [flags of launch.py]      SEEDS=3 bash benchmark/rivals.sh
#     python benchmark/report.py rivals
# trpo has one batch size for all tasks, trpo-2016 those of the first author's code of 2016.
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
SETTINGS=(  # name, seeds, command
  "ppo        10  ppo_continuous.py"
  "trpo       10  benchmark/rivals/trpo.py"
  "trpo-2016  10  benchmark/rivals/trpo.py --minibatch-size 50"
  "vpg        10  benchmark/rivals/vpg.py"
  "a2c         5  benchmark/rivals/a2c.py"
  "a2c-tr      5  benchmark/rivals/a2c.py --trust-region"
  "cem         5  benchmark/rivals/cem.py"
)

for seed in $(seq "${SEEDS:-10}"); do
  for task in $TASKS; do
    for line in "${SETTINGS[@]}"; do
      read -r setting seeds command <<< "$line"
      if [ "$setting" = trpo-2016 ]; then
        case $task in
          InvertedPendulum) command+=" --num-steps 5000" ;;
          Reacher|InvertedDoublePendulum) command+=" --num-steps 15000" ;;
          *) command+=" --num-steps 25000" ;;
        esac
      fi
      [ "$seed" -gt "$seeds" ] || echo python $command --env-id "$task" --seed "$seed" \
        --run-dir "runs/rivals/$setting/$task/$seed"
    done
  done
done | python benchmark/launch.py "$@"
