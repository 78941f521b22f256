# shellcheck shell=bash
# For scripts that submit a run elsewhere: reads what is to run, and asks whether it fits before
# anything is paid for. Source it after environment.sh.

# read_arguments ARGUMENTS...: takes the arguments of research.train apart. Sets `recipe` to those
# that research.fit takes too, and `workdir`.
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

# as_path FOLDER: with ./ before a name that begins with a dash, which find would take for an option.
as_path() {
  case "$1" in
    -*) printf './%s' "$1" ;;
    *) printf '%s' "$1" ;;
  esac
}

# fit_first TARGET FOLDER: prints the prediction and writes it to FOLDER/fit.json. Fails with fit's
# exit code and error where the recipe does not fit (3) or is wrong (2). SKIP_FIT=1 leaves it out.
fit_first() {
  [ -z "${SKIP_FIT:-}" ] || return 0
  # In an environment apart: JAX would take the libtpu that fit needs for this machine's.
  local venv=${GRAFT_FIT_VENV:-.venv-fit} code=0
  local python="$venv/bin/python"
  make_environment '[fit]'
  run "$python" -m research.fit "${recipe[@]}" "--target=$1" "--workdir=$2" || code=$?
  [ "$code" != 3 ] || echo "error: it does not fit $1 and was not submitted" >&2
  return "$code"
}
