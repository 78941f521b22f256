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
  local extras=${1:-} stamp newest
  stamp="$venv/.installed$(printf '%s' "$extras" | tr -dc 'a-z,')"
  if [ -f "$stamp" ] && cmp -s setup.cfg "$stamp"; then
    return
  fi
  if [ ! -x "$python" ]; then
    newest=$(newest_python "$extras") || return
    run "$newest" -m venv "$venv"
  fi
  run "$python" -m pip install --quiet --disable-pip-version-check --editable ".$extras"
  [ -n "${DRY_RUN:-}" ] || cp setup.cfg "$stamp"
}

# newest_python [EXTRAS]: the newest Python that is there and works, at least 3.11; for the extra
# [cuda] at least 3.12, since older ones have no JAX with the kernels of NVIDIA's cards.
newest_python() {
  local name least=11
  case ${1:-} in
    *'[cuda]'*) least=12 ;;
  esac
  for name in python3.13 python3.12 python3.11 python3 python; do
    if command -v "$name" > /dev/null &&
      "$name" -c "import sys, venv; sys.exit(sys.version_info < (3, $least))" 2> /dev/null; then
      echo "$name"
      return
    fi
  done
  echo "error: Python 3.$least or newer is needed${1:+ for $1} and none was found" >&2
  [ "$least" = 11 ] ||
    echo "Python 3.11 keeps the CPU: JAX_PLATFORMS=cpu leaves the card alone" >&2
  return 2
}
