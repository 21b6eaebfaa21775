#!/usr/bin/env bash
# Table 1 of the paper by the code of July 2017: its 11 objectives and two that it mentions without
# numbers (table1_rows.txt), 7 tasks, 10 seeds, 1M steps each. Seeds first: whatever has been done
# when it is stopped is a whole table of fewer seeds.
#     bash benchmark/table1_2017.sh [flags of launch.py]      SEEDS=1 bash benchmark/table1_2017.sh
#     python benchmark/report.py table1-2017
set -euo pipefail
cd "$(dirname "$0")/.."

TASKS="HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"
FLAGS="--no-norm-reward --no-anneal-lr --init normc --adam-eps 1e-8 --no-bootstrap-truncated"

for seed in $(seq "${SEEDS:-10}"); do
  for task in $TASKS; do
    while read -r setting command; do
      echo python $command $FLAGS --env-id "$task" --seed "$seed" \
        --run-dir "runs/table1-2017/$setting/$task/$seed"
    done < benchmark/table1_rows.txt
  done
done | python benchmark/launch.py "$@"
