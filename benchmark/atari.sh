#!/usr/bin/env bash
# Tables 2 and 6 of the paper: PPO, A2C and ACER on 49 games, 3 seeds, 10M steps (40M frames) each.
#     bash benchmark/atari.sh --gpus 0.25 --cpus 2 --address HOST:6379     four runs share a GPU
#     python benchmark/report.py atari
#     GAMES=KungFuMaster SEEDS=2 STEPS=1000000 bash benchmark/atari.sh     shorter runs, kept apart
#     python benchmark/report.py atari/1000000
# While it lasts, a run of ACER takes 0.1 to 0.6 GB (Yars' Revenge: 1.4) in TMPDIR and in runs/ each.
set -euo pipefail
cd "$(dirname "$0")/.."

ALGORITHMS="${ALGORITHMS:-ppo a2c acer}"
GAMES="${GAMES:-Alien Amidar Assault Asterix Asteroids Atlantis BankHeist BattleZone BeamRider
  Bowling Boxing Breakout Centipede ChopperCommand CrazyClimber DemonAttack DoubleDunk Enduro
  FishingDerby Freeway Frostbite Gopher Gravitar IceHockey Jamesbond Kangaroo Krull KungFuMaster
  MontezumaRevenge MsPacman NameThisGame Pitfall Pong PrivateEye Qbert Riverraid RoadRunner
  Robotank Seaquest SpaceInvaders StarGunner Tennis TimePilot Tutankham UpNDown Venture
  VideoPinball WizardOfWor Zaxxon}"

commands=$(for seed in $(seq "${SEEDS:-3}"); do
  for algorithm in $ALGORITHMS; do
    case $algorithm in
      ppo) script=ppo_atari.py ;;
      a2c) script=benchmark/rivals/a2c_atari.py ;;
      acer) script=benchmark/rivals/acer.py ;;
      *) echo "ALGORITHMS: $algorithm is none of ppo, a2c, acer" >&2; exit 2 ;;
    esac
    for game in $GAMES; do
      echo python "$script" --env-id "$game" --seed "$seed" \
        --total-timesteps "${STEPS:-10000000}" \
        --run-dir "runs/atari${STEPS:+/$STEPS}/$algorithm/$game/$seed"
    done
  done
done)
python benchmark/launch.py "$@" <<< "$commands"
