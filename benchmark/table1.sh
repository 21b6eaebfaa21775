#!/usr/bin/env bash
# Table 1 of the paper by the scripts' defaults: its 11 objectives and two that it mentions without
# numbers (table1_rows.txt), 7 tasks, 5 seeds, 1M steps each.
#     bash benchmark/table1.sh [flags of launch.py]      SEEDS=1 bash benchmark/table1.sh
#     python benchmark/report.py table1
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"

for seed in $(seq "${SEEDS:-5}"); do
  for task in $TASKS; do
    while read -r setting command; do
      echo python $command --env-id "$task" --seed "$seed" \
        --run-dir "runs/table1/$setting/$task/$seed"
    done < benchmark/table1_rows.txt
  done
done | python benchmark/launch.py "$@"
