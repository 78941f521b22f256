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

# target_of ACCELERATOR: "v5e:4x4" of "v5litepod-16". Cloud TPU counts chips of v5e and v6e, and two
# cores a chip of the others.
target_of() {
  local kind=${1%-*} count=${1##*-} flat=1x1 deep=1x1x1
  case "$kind" in
    v4 | v5p | tpu7x) count=$((count / 2)) ;;
  esac
  case "$count" in
    1) ;;
    4) flat=2x2 deep=2x2x1 ;;
    8) flat=2x4 deep=2x2x2 ;;
    16) flat=4x4 deep=2x2x4 ;;
    32) flat=4x8 deep=2x4x4 ;;
    64) flat=8x8 deep=4x4x4 ;;
    128) flat=8x16 deep=4x4x8 ;;
    256) flat=16x16 deep=4x8x8 ;;
    512) flat='' deep=8x8x8 ;;
    1024) flat='' deep=8x8x16 ;;
    2048) flat='' deep=8x16x16 ;;
    *) flat='' deep='' ;;
  esac
  case "$kind" in
    v5litepod) [ -z "$flat" ] || echo "v5e:$flat" ;;
    v6e) [ -z "$flat" ] || echo "v6e:$flat" ;;
    v4 | v5p | tpu7x) [ -z "$deep" ] || echo "$kind:$deep" ;;
  esac
}

# has_one_host ACCELERATOR: whether one machine holds all chips of a slice: up to eight of v5e and
# v6e, four of the others.
has_one_host() {
  case "$1" in
    v5litepod-[1-8] | v6e-[1-8] | v4-[1-8] | v5p-[1-8] | tpu7x-[1-8]) ;;
    *) return 1 ;;
  esac
}
