#!/usr/bin/env bash
# Runs every command of README.md and research/measured.md as it is written, in a copy of the
# checkout: long ones with small settings; those that want hardware, hours or an account are listed
# with the reason. Four to five minutes on two cores.
#
#   ./launch/readme.sh
#   DRY_RUN=1 ./launch/readme.sh     tells what becomes of each and runs none
#
# GRAFT_VENV: the environment's folder (.venv). GRAFT_SLOWER=3: three times the time limit of each.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh

if [ -n "${DRY_RUN:-}" ]; then
  exec "$(newest_python)" launch/readme_commands.py README.md research/measured.md
fi
make_environment ""
"$python" launch/readme_commands.py README.md research/measured.md --run
