# shellcheck shell=bash
# For the other scripts to source: makes the virtual environment where it is missing, and updates
# it where it is old. Nothing but Python 3.11 or newer has to be there.

venv=${GRAFT_VENV:-.venv}
# shellcheck disable=SC2034  # used by the scripts that source this file
python="$venv/bin/python"

# run COMMAND...: runs it, or prints it under DRY_RUN=1.
run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@" && echo
  else
    "$@"
  fi
}

# make_environment [EXTRAS]: installs Graft with EXTRAS such as '[test]' into $venv.
# A copy of setup.cfg is kept for each set of extras, so that pip runs only after a change of it.
make_environment() {
  local extras=${1:-} stamp
  stamp="$venv/.installed$(printf '%s' "$extras" | tr -dc 'a-z,')"
  if [ -f "$stamp" ] && cmp -s setup.cfg "$stamp"; then
    return
  fi
  [ -x "$python" ] || run "$(newest_python "$extras")" -m venv "$venv"
  run "$python" -m pip install --quiet --disable-pip-version-check --editable ".$extras"
  [ -n "${DRY_RUN:-}" ] || cp setup.cfg "$stamp"
}

# newest_python [EXTRAS]: the first of python3 and the versioned names that is at least 3.11. To run
# on NVIDIA's cards, whose best attention kernel wants 3.12, the versioned names come first; `fit`
# keeps python3's, since JAX 0.12 compiles Triton's kernels for fewer cards that are not there.
newest_python() {
  local name names="python3 python3.13 python3.12 python3.11 python"
  case ${1:-} in
    *cuda*) names="python3.13 python3.12 $names" ;;
  esac
  for name in $names; do
    if command -v "$name" > /dev/null &&
      "$name" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: Python 3.11 or newer is needed and none was found" >&2
  return 2
}
