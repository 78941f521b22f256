# shellcheck shell=bash
# For scripts that submit a run elsewhere: read what is to run, and ask whether it fits before anything is paid for.
# Sourced after environment.sh.

# read_arguments ARGUMENTS...: those of research.train into `recipe` (what fit has to know) and `workdir`.
read_arguments() {
  recipe=() workdir=
  local argument
  for argument in "$@"; do
    case "$argument" in
      --config=* | --config.*=*) recipe+=("$argument") ;;
      --workdir=*) workdir=${argument#--workdir=} ;;
      --config | --config.* | --workdir)
        echo "error: write $argument=VALUE, with an equals sign" >&2
        return 2
        ;;
    esac
  done
  if [ ${#recipe[@]} = 0 ] || [ -z "$workdir" ]; then
    echo "error: give --config=FILE and --workdir=FOLDER, as research.train takes them" >&2
    return 2
  fi
}

# fit_first TARGET FOLDER: the prediction on standard output and in FOLDER/fit.json. Fails, in fit's own words and with its
# exit code, where the recipe does not fit (3) or is wrong (2). SKIP_FIT=1 leaves it out.
fit_first() {
  [ -z "${SKIP_FIT:-}" ] || return 0
  # An environment of its own: libtpu beside a run on CUDA, or on the CPU, would be found there.
  local venv=${GRAFT_FIT_VENV:-.venv-fit} code=0
  local python="$venv/bin/python"
  make_environment '[fit]'
  run "$python" -m research.fit "${recipe[@]}" "--target=$1" "--workdir=$2" || code=$?
  [ "$code" != 3 ] || echo "error: it does not fit $1 and was not submitted" >&2
  return "$code"
}
