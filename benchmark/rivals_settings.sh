#!/usr/bin/env bash
# The search for the rivals' settings where their authors left a choice: three tasks, two seeds,
# 1M steps each, at most 7 settings a rival.
#     bash benchmark/rivals_settings.sh [flags of launch.py]      RIVALS=trpo for one of them
#     python benchmark/report.py rivals/settings            a section of the page of rivals.sh
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper Swimmer"
SETTINGS=(  # rival, setting, flags
  "trpo  batch-2048     --num-steps 2048 --minibatch-size 64"
  "trpo  batch-5000     --num-steps 5000 --minibatch-size 50"
  "trpo  batch-15000    --num-steps 15000 --minibatch-size 50"
  "trpo  batch-25000    --num-steps 25000 --minibatch-size 50"
  "vpg   kl-0.01        --desired-kl 0.01"
  "vpg   kl-0.002       --desired-kl 0.002"
  "vpg   kl-0.03        --desired-kl 0.03"
  "cem   population-100 --population 100"
  "cem   population-20  --population 20"
  "cem   population-40  --population 40"
  "cem   population-200 --population 200"
  "a2c   rewards-scaled --learning-rate 7e-4"
  "a2c   rewards-raw    --learning-rate 7e-4 --no-norm-reward"
  "a2c   lr-0.0002      --learning-rate 2e-4"
  "a2c   lr-0.002       --learning-rate 2e-3"
  "a2c   lr-0.005       --learning-rate 5e-3"
  "a2c   steps-20       --learning-rate 7e-4 --num-steps 20"
  "a2c   steps-20-lr-0.002  --learning-rate 2e-3 --num-steps 20"
)

for seed in $(seq "${SEEDS:-2}"); do
  for line in "${SETTINGS[@]}"; do
    for task in $TASKS; do
      read -r rival setting flags <<< "$line"
      [[ " ${RIVALS:-trpo vpg a2c cem} " != *" $rival "* ]] ||
        echo python "benchmark/rivals/$rival.py" $flags --env-id "$task" --seed "$seed" \
          --run-dir "runs/rivals/settings/$rival-$setting/$task/$seed"
    done
  done
done | python benchmark/launch.py "$@"
