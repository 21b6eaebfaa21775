#!/usr/bin/env bash
# Ant and Humanoid, which chose no setting of the paper's: the 13 rows by the scripts' defaults, and
# TRPO and VPG; 3 seeds, 5 of eps = 0.2, beta = 1 and d_targ = 0.01.
#     bash benchmark/held_out.sh [flags of launch.py]      SEEDS=1 bash benchmark/held_out.sh
#     python benchmark/report.py held-out
set -euo pipefail
cd "$(dirname "$0")/.."

rows() {
  cat benchmark/table1_rows.txt
  echo "trpo  benchmark/rivals/trpo.py"
  echo "vpg   benchmark/rivals/vpg.py"
}

for seed in $(seq "${SEEDS:-5}"); do
  for task in Ant Humanoid; do
    rows | sed -n "1,$((seed > 3 ? 3 : 99))p" | while read -r setting command; do
      echo python $command --env-id "$task" --seed "$seed" \
        --run-dir "runs/held-out/$setting/$task/$seed"
    done
  done
done | python benchmark/launch.py "$@"
