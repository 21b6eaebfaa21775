#!/usr/bin/env bash
# Ant and Humanoid, which chose no setting of the paper's: the 13 rows by the scripts' defaults, and
# TRPO and VPG; 3 seeds, 5 of eps = 0.2, beta = 1 and d_targ = 0.01.
#     bash benchmark/held_out.sh [flags of launch.py]      SEEDS=1 bash benchmark/held_out.sh
#     python benchmark/report.py held-out
set -euo pipefail
cd "$(dirname "$0")/.."

SETTINGS=(
  "clip-0.2           ppo_continuous.py"
  "fixed-kl-1         ppo_klpen.py --no-adapt-kl-coef --kl-coef 1"
  "adaptive-kl-0.01   ppo_klpen.py --kl-target 0.01"
  "no-clip            ppo_noclip.py"
  "pg                 ppo_noclip.py --surrogate pg"
  "clip-0.1           ppo_continuous.py --clip-coef 0.1"
  "clip-0.3           ppo_continuous.py --clip-coef 0.3"
  "log-clip-0.2       ppo_continuous.py --clip-coef 0.2 --clip-log-ratio"
  "adaptive-kl-0.003  ppo_klpen.py --kl-target 0.003"
  "adaptive-kl-0.03   ppo_klpen.py --kl-target 0.03"
  "fixed-kl-0.3       ppo_klpen.py --no-adapt-kl-coef --kl-coef 0.3"
  "fixed-kl-3         ppo_klpen.py --no-adapt-kl-coef --kl-coef 3"
  "fixed-kl-10        ppo_klpen.py --no-adapt-kl-coef --kl-coef 10"
  "trpo               benchmark/rivals/trpo.py"
  "vpg                benchmark/rivals/vpg.py"
)

for seed in $(seq "${SEEDS:-5}"); do
  for task in Ant Humanoid; do
    for line in "${SETTINGS[@]:0:$((seed > 3 ? 3 : 99))}"; do
      read -r setting command <<< "$line"
      echo python $command --env-id "$task" --seed "$seed" \
        --run-dir "runs/held-out/$setting/$task/$seed"
    done
  done
done | python benchmark/launch.py "$@"
