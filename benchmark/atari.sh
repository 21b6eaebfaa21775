#!/usr/bin/env bash
# Table 6 of the paper: ppo_atari.py on 49 games, 3 seeds, 10M steps (40M frames) each.
#     bash benchmark/atari.sh --gpus 0.25 --cpus 2 --address HOST:6379     four runs share a GPU
#     GAMES="Pong Breakout" SEEDS=1 bash benchmark/atari.sh                4 hours, a core each
#     python benchmark/report.py atari
set -euo pipefail
cd "$(dirname "$0")/.."

GAMES="${GAMES:-Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider
  Bowling Boxing Breakout Centipede ChopperCommand CrazyClimber DemonAttack DoubleDunk Enduro
  FishingDerby Freeway Frostbite Gopher Gravitar IceHockey Jamesbond Kangaroo Krull KungFuMaster
  MontezumaRevenge MsPacman NameThisGame Pitfall Pong PrivateEye Qbert Riverraid RoadRunner
  Robotank Seaquest SpaceInvaders StarGunner Tennis TimePilot Tutankham UpNDown Venture
  VideoPinball WizardOfWor Zaxxon}"

for seed in $(seq "${SEEDS:-3}"); do
  for game in $GAMES; do
    echo python ppo_atari.py --env-id "$game" --seed "$seed" \
      --run-dir "runs/atari/ppo_atari/$game/$seed"
  done
done | python benchmark/launch.py "$@"
