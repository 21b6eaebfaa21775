#!/usr/bin/env bash
# Is it the exploration noise that makes the clip learn where the penalties do not? On Ant and
# Humanoid, 1M steps each, seeds first:
#   - copies of the scripts, changed by benchmark/log_std/*.patch, 3 seeds: the clip with log std
#     out of its reach, alone in its reach, or held at 0; four rows with the log std of the clip's
#     first run; of Humanoid 1 seed
#   - five rows with the norm of the gradient clipped, 3 seeds: benchmark/gradients.py says why
#   - every row of held_out.sh with --init-log-std -0.5, -1, -1.5: 1 seed; from -1 3 seeds of TRPO,
#     eps = 0.2, beta = 1, d_targ = 0.01 and no clipping; the page has a column TASK@START of each
#   - other values of epsilon and beta on Ant, 3 seeds
#   - eps = 0.2 with the same --init-log-std on the seven tasks: 3 seeds, 1 from -1.5
#     bash benchmark/log_std.sh [flags of launch.py]
#     python benchmark/report.py held-out/log-std
#     python benchmark/report.py table1/log-std                the seven tasks
set -euo pipefail
cd "$(dirname "$0")/.."

COPIES=(
  "clip-0.2-std-unclipped      unclipped_ppo_continuous.py"
  "clip-0.2-std-only           unclipped_ppo_continuous.py --unclipped mean"
  "clip-0.2-std-held           scheduled_ppo_continuous.py --log-std 0"
  "clip-0.2-std-of-clip        scheduled_ppo_continuous.py"
  "fixed-kl-1-std-of-clip      scheduled_ppo_klpen.py --no-adapt-kl-coef --kl-coef 1"
  "adaptive-kl-0.01-std-of-clip  scheduled_ppo_klpen.py --kl-target 0.01"
  "no-clip-std-of-clip         scheduled_ppo_noclip.py"
)
GRADIENT=(
  "clip-0.2-grad-clipped          ppo_continuous.py --max-grad-norm 0.5"
  "fixed-kl-1-grad-clipped        ppo_klpen.py --no-adapt-kl-coef --kl-coef 1 --max-grad-norm 0.5"
  "fixed-kl-3-grad-clipped        ppo_klpen.py --no-adapt-kl-coef --kl-coef 3 --max-grad-norm 0.5"
  "adaptive-kl-0.01-grad-clipped  ppo_klpen.py --kl-target 0.01 --max-grad-norm 0.5"
  "no-clip-grad-clipped           ppo_noclip.py --max-grad-norm 0.5"
)
RANGE=(
  "clip-0.05          ppo_continuous.py --clip-coef 0.05"
  "clip-0.5           ppo_continuous.py --clip-coef 0.5"
  "fixed-kl-0.03      ppo_klpen.py --no-adapt-kl-coef --kl-coef 0.03"
  "fixed-kl-0.1       ppo_klpen.py --no-adapt-kl-coef --kl-coef 0.1"
  "fixed-kl-30        ppo_klpen.py --no-adapt-kl-coef --kl-coef 30"
)
[[ " $* " == *" --dry-run "* ]] && dry=1 || dry=
SEVEN="HalfCheetah Hopper InvertedDoublePendulum InvertedPendulum Reacher Swimmer Walker2d"

mkdir -p runs/log-std-copies
for script in ppo_continuous ppo_noclip ppo_klpen; do
  for change in scheduled unclipped; do
    [ "$change" = unclipped ] && [ "$script" != ppo_continuous ] ||
      patch -s -o "runs/log-std-copies/${change}_$script.py" "$script.py" "benchmark/log_std/$change.patch"
  done
done

# log std of the clip's first run at the start and at every tenth of training. Kept in a file, so that
# more seeds do not change the commands; without it, taken from the entropy on held-out's page.
points() {
  local file="benchmark/log_std/$1.txt" found
  if [ -e "$file" ]; then
    cat "$file"
    return
  fi
  found=$(python - "$1" << END
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd

path, task = Path("benchmark/results/held-out/curves.csv"), sys.argv[1]
first = "setting == 'clip-0.2' and task == @task and seed == 1"
rows = pd.read_csv(path).query(first) if path.exists() else ()
if not len(rows):
    sys.exit(f"no {task}; first: bash benchmark/held_out.sh && python benchmark/report.py held-out")
entropy = rows.groupby("step")["entropy"].mean() / {"Ant": 8, "Humanoid": 17}[task]
found = entropy - math.log(2 * math.pi * math.e) / 2
tenths = np.interp([100_000 * i for i in range(1, 11)], found.index, found)
print("0", *(f"{x:.2f}" for x in tenths))
END
) || return
  [ -n "$dry" ] || echo "$found" > "$file"
  echo "$found"
}

rows() {  # the first five with three seeds
  echo "trpo  benchmark/rivals/trpo.py"
  cat benchmark/table1_rows.txt
  echo "vpg   benchmark/rivals/vpg.py"
}

run() {  # page, setting, task, seed, command
  echo python "${@:5}" --env-id "${3%@*}" --seed "$4" --run-dir "runs/$1/$2/$3/$4"
}

ant=$(points Ant)
humanoid=$(points Humanoid)
for seed in $(seq "${SEEDS:-3}"); do
  for task in Ant Humanoid; do
    [ "$task" = Ant ] && std=$ant || std=$humanoid
    for line in "${COPIES[@]}"; do
      [ "$task" = Ant ] || [ "$seed" = 1 ] || continue
      read -r setting command <<< "$line"
      [[ "$setting" != *-of-clip ]] || command+=" --log-std '$std'"
      run held-out/log-std "$setting" "$task" "$seed" "runs/log-std-copies/$command"
    done
    for line in "${GRADIENT[@]}"; do
      read -r setting command <<< "$line"
      run held-out/log-std "$setting" "$task" "$seed" "$command"
    done
  done
  for start in -1 -0.5 -1.5; do
    [ "$seed" = 1 ] || [ "$start" = -1 ] || continue
    rows | sed -n "1,$((seed > 1 ? 5 : 99))p" | while read -r setting command; do
      for task in Ant Humanoid; do
        run held-out/log-std "$setting" "$task@$start" "$seed" "$command" --init-log-std "$start"
      done
    done
  done
  for line in "${RANGE[@]}"; do
    read -r setting command <<< "$line"
    run held-out/log-std "$setting" Ant "$seed" "$command"
  done
  for task in $SEVEN; do
    for start in -1 -0.5 -1.5; do
      [ "$seed" = 1 ] || [ "$start" != -1.5 ] || continue
      run table1/log-std "log-std$start" "$task" "$seed" ppo_continuous.py --init-log-std "$start"
    done
  done
done | python benchmark/launch.py "$@"
