"""What is submitted elsewhere is asked of fit first, and is not submitted where it does not fit."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.configs import ROOT

SCRIPTS = {
    "slurm": {"CARD": "h100", "NODES": "2", "CARDS": "8"},
    "tpu": {
        "NAME": "graft",
        "ZONE": "us-east5-b",
        "ACCELERATOR": "v5litepod-16",
        "POLL_SECONDS": "0",
    },
}
SCRIPTS["slurm_sweep"] = {"CARD": "h100", "CARDS": "2", "AT_ONCE": "4"}
SCRIPTS["gke"] = {"NAME": "graft", "CLUSTER": "pod", "ZONE": "z", "ACCELERATOR": "v5litepod-16"}
SUBMIT = {
    "gke": "xpk workload create",
    "slurm": "sbatch",
    "tpu": "gcloud compute tpus queued-resources create",
    "slurm_sweep": "sbatch --parsable",
}
RECIPE = ["--config=configs/pretrain.py:model=llama3_8b", "--config.mesh=fsdp:-1"]


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


# A cloud with one name for a slice and its request, whose states are the files `vm` and `request`.
# What the run says, look by look, is in the file `looks` beside the folder: "lost" is an ssh that
# fails, "taken" a slice that is taken away.
GCLOUD = """
case "$*" in
  *tpu-vm\\ describe*) cat vm 2> /dev/null || exit 1 ;;
  *resources\\ describe*) cat request 2> /dev/null || exit 1 ;;
  *resources\\ create*)
    [ ! -f ../quota ] || { echo RESOURCE_EXHAUSTED >&2; exit 1; }
    [ ! -f request ] || { echo ALREADY_EXISTS >&2; exit 1; }
    echo ACTIVE > request; echo READY > vm ;;
  *\\ delete\\ graft*) rm -f vm request ;;
  *worker=0*command*)
    look=$(head -n 1 ../looks); sed -i 1d ../looks
    case "$look" in
      lost) exit 255 ;;
      taken) echo PREEMPTED > vm; echo SUSPENDED > request; exit 255 ;;
      *) echo "$look" ;;
    esac ;;
  *) [ "$(cat vm)" = READY ] || exit 255 ;;
esac
"""


@pytest.fixture
def site(tmp_path):
    """A machine whose pip, fit, sbatch, srun, scontrol and gcloud note their arguments in
    `calls`."""
    note = 'echo "$(basename "$0") $*" >> "$CALLS"'
    fit = f"""{note}
[[ "$*" != *research.fit* ]] || {{ echo "10.00 GiB of 4.00 GiB"; exit "${{FIT_CODE:-0}}"; }}
[[ "$*" != *research.sweep\\ plan* ]] || echo 48 cells of 48 runs"""
    for venv in ("venv", "fit"):
        write_program(tmp_path / venv / "bin" / "python", fit)
    sbatch = f"""{note}
case "$*" in *--parsable*) echo 7 ;; esac
[[ "$*" == *--wrap* ]] || cat > {tmp_path}/job"""
    write_program(tmp_path / "bin" / "sbatch", sbatch)
    (tmp_path / "cloud").mkdir()
    (tmp_path / "looks").write_text("exit 0\n")
    write_program(tmp_path / "bin" / "gcloud", f"{note}\ncd {tmp_path}/cloud\n{GCLOUD}")
    for name in ("scontrol", "xpk"):
        write_program(tmp_path / "bin" / name, note)
    write_program(tmp_path / "bin" / "srun", f'{note}\nexit "${{SRUN_CODE:-0}}"')
    return tmp_path


def launch(
    site: Path, name: str, *arguments: str, **variables: str
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """A script's end, and the calls it made."""
    calls = site / "calls"
    calls.unlink(missing_ok=True)
    settings = {
        **SCRIPTS[name],
        "PATH": f"{site}/bin:{os.environ['PATH']}",
        "CALLS": str(calls),
        "GRAFT_VENV": str(site / "venv"),
        "GRAFT_FIT_VENV": str(site / "fit"),
        **variables,
    }
    command = [f"{ROOT}/launch/{name}.sh", *(arguments or [*RECIPE, f"--workdir={site}/run"])]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True)
    return done, calls.read_text().splitlines() if calls.exists() else []


@pytest.mark.parametrize("name", SCRIPTS)
def test_fit_is_asked_first_with_the_recipe(site, name):
    done, calls = launch(site, name)
    assert done.returncode == 0, done.stderr
    kinds = [index for index, call in enumerate(calls) if "-m research.fit " in call]
    submitted = [index for index, call in enumerate(calls) if call.startswith(SUBMIT[name])]
    assert len(kinds) == len(submitted) == 1 and kinds[0] < submitted[0]
    target = {"slurm": "h100:2x8", "tpu": "v5e:4x4", "slurm_sweep": "h100:2", "gke": "v5e:4x4"}[
        name
    ]
    assert f"-m research.fit {' '.join(RECIPE)} --target={target} --workdir=" in calls[kinds[0]]
    assert "10.00 GiB" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(("code", "words"), [(3, "was not submitted"), (2, ""), (1, "")])
def test_what_fit_refuses_is_not_submitted(site, name, code, words):
    done, calls = launch(site, name, FIT_CODE=str(code))
    assert done.returncode == code and words in done.stderr
    assert "10.00 GiB of 4.00 GiB" in done.stdout  # fit's own words
    assert not [call for call in calls if call.startswith(("sbatch", "gcloud", "xpk"))]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_dry_run_prints_the_commands_and_does_nothing(site, name):
    done, calls = launch(site, name, DRY_RUN="1")
    assert done.returncode == 0 and calls == [] and not (site / "run").exists()
    assert SUBMIT[name] in done.stdout and "-m research.fit" in done.stdout
    assert done.stdout.index("-m research.fit") < done.stdout.index(SUBMIT[name])


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    "arguments", [["--workdir=x"], ["--config=x"], ["--config", "x", "--workdir=y"]]
)
def test_missing_arguments_are_one_line(site, name, arguments):
    done, calls = launch(site, name, *arguments)
    assert (
        done.returncode == 2
        and calls == []
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
    )


# Exit code of the tasks, steps saved before and after, restarts so far, and whether the job is to
# be queued again.
ENDS = {
    "done": (0, [50], [50, 100], 0, False),
    "a bug": (1, [50], [50, 100], 0, False),
    "preempted": (42, [50], [50, 100], 0, True),
    "killed for memory": (137, [50], [50, 100], 0, True),
    "heartbeat lost": (134, [], [50], 0, True),
    "a second signal": (130, [], [50], 3, True),
    "a step of more digits": (42, [900], [900, 1000], 0, True),
    "killed before anything is saved": (137, [], [], 0, False),
    "preempted without progress": (42, [50], [50], 1, False),
    "a save that was not finished": (137, [50], [50, "100.orbax-checkpoint-tmp"], 0, False),
    "again and again": (137, [50], [50, 100], 100, False),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_job_is_queued_again_while_it_gets_on(site, end):
    code, before, after, restarts, queued = ENDS[end]
    workdir = site / "a run of 100% [x]"
    launch(site, "slurm", *RECIPE, f"--workdir={workdir}")
    for step in before:
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    folders = " ".join(shlex.quote(str(workdir / "checkpoints" / str(step))) for step in after)
    saves = f"mkdir -p {folders}\n" if after else ""
    write_program(site / "bin" / "srun", f'echo "srun $*" >> "$CALLS"\n{saves}exit {code}')
    settings = {
        "PATH": f"{site}/bin:{os.environ['PATH']}",
        "CALLS": str(site / "job_calls"),
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restarts),
    }
    done = subprocess.run(
        ["bash", site / "job"], env={**os.environ, **settings}, capture_output=True, text=True
    )
    calls = (site / "job_calls").read_text()
    assert done.returncode == code and ("scontrol requeue 7" in calls) == queued
    assert f"-m research.train {' '.join(RECIPE)} --workdir={workdir}" in calls
    # What is not queued again although it could be is said in one line.
    silent = queued or code in (0, 1)
    assert done.stderr.count("\n") == (0 if silent else 1), done.stderr


def test_a_job_array_is_a_run_a_task(site):
    recipe = [*RECIPE, f"--workdir={site}/a b/{{task}}", "--config.train.seed={task}"]
    done, calls = launch(site, "slurm", *recipe, ARRAY="0-3%2")
    assert done.returncode == 0, done.stderr
    assert "--array=0-3%2" in calls[-1] and f"--output={site}/a b/slurm-%A-%a.log" in calls[-1]
    program = f'echo "srun $*" >> "$CALLS"\nmkdir -p "{site}/a b/2/checkpoints/50"\nexit 42'
    write_program(site / "bin" / "srun", program)
    settings = {"PATH": f"{site}/bin:{os.environ['PATH']}", "CALLS": str(site / "job_calls")}
    settings |= {"SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}
    ended = subprocess.run(["bash", site / "job"], env={**os.environ, **settings})
    calls = (site / "job_calls").read_text().splitlines()
    assert ended.returncode == 42 and calls[-1] == "scontrol requeue 9"
    assert calls[0].endswith(f"--workdir={site}/a b/2 --config.train.seed=2")


@pytest.mark.parametrize(
    ("array", "workdir"), [("0-3;x", "runs/{task}"), ("0-3", "runs/a"), ("", "runs/{task}")]
)
def test_an_array_that_is_none_is_one_line(site, array, workdir):
    done, calls = launch(site, "slurm", *RECIPE, f"--workdir={workdir}", ARRAY=array)
    assert done.returncode == 2 and calls == [] and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ARRAY")


@pytest.mark.parametrize(
    ("code", "restarts", "queued"), [(0, 0, 0), (2, 0, 0), (42, 3, 1), (137, 0, 1), (42, 100, 0)]
)
def test_an_index_of_a_sweep_is_a_cell_and_is_queued_again_if_it_was_ended(
    site, code, restarts, queued
):
    done, calls = launch(site, "slurm_sweep")
    assert "array 7 of 48 cells" in done.stdout
    [array, report] = [call for call in calls if call.startswith("sbatch ")]
    assert "--array=0-47%4" in array and "--requeue" in array and "--gpus-per-node=2" in array
    assert "--dependency=afterany:7" in report and "research.sweep report" in report
    settings = {
        "PATH": f"{site}/bin:{os.environ['PATH']}", "CALLS": str(site / "job_calls"),
        "SLURM_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "12", "SRUN_CODE": str(code),
        "SLURM_RESTART_COUNT": str(restarts),
    }  # fmt: skip
    job = subprocess.run(["bash", site / "job"], env={**os.environ, **settings})
    text = (site / "job_calls").read_text()
    assert job.returncode == code and text.count("scontrol requeue 9") == queued
    assert f"-m research.sweep cell --workdir={site}/run --index=12" in text


def test_a_slice_can_run_a_sweep(site):
    done, _ = launch(site, "tpu", DRY_RUN="1", SWEEP="1")
    assert "-m research.sweep run" in done.stdout.replace("\\", "")
    assert "GRAFT_PROCESSES" not in done.stdout


@pytest.mark.parametrize(
    ("workdir", "name", "output"),
    [
        ("runs/50%j", "50%j", "runs/50%%j/slurm-%j.log"),
        ("-x", "-x", "-x/slurm-%j.log"),
        ("runs/--help", "--help", "runs/--help/slurm-%j.log"),
    ],
)
def test_any_name_of_a_workdir_is_a_name(site, workdir, name, output):
    done, _ = launch(site, "slurm", *RECIPE, f"--workdir={workdir}", DRY_RUN="1")
    assert done.returncode == 0, done.stderr
    [submitted] = [line for line in done.stdout.splitlines() if line.startswith("sbatch ")]
    assert {f"--job-name={name}", f"--output={output}"} <= set(shlex.split(submitted))


@pytest.mark.parametrize("variables", [{"NODES": "abc"}, {"CARDS": "0"}, {"NODES": "2,4"}])
def test_counts_that_are_no_numbers_are_one_line(site, variables):
    [(name, value)] = variables.items()
    done, calls = launch(site, "slurm", **variables)
    assert done.returncode == 2 and calls == [] and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {name}={value} ")


# Chips along each axis of Cloud TPU's usual slices: cloud.google.com/tpu/docs/v5e, v5p, v6e, v4.
SLICES = {
    "v5litepod-1": "v5e:1x1",
    "v5litepod-8": "v5e:2x4",
    "v5litepod-256": "v5e:16x16",
    "v6e-4": "v6e:2x2",
    "v6e-64": "v6e:8x8",
    "v5p-8": "v5p:2x2x1",
    "v5p-128": "v5p:4x4x4",
    "v5p-1024": "v5p:8x8x8",
    "v5p-4096": "v5p:8x16x16",
    "v4-8": "v4:2x2x1",
}


@pytest.mark.parametrize("accelerator", SLICES)
def test_an_accelerator_is_its_target(site, accelerator):
    from research.fit.targets import parse_target

    done, _ = launch(site, "tpu", DRY_RUN="1", ACCELERATOR=accelerator)
    assert f"--target={SLICES[accelerator]} " in done.stdout
    assert parse_target(SLICES[accelerator]).name == SLICES[accelerator]  # fit knows it


def test_an_unusual_accelerator_wants_its_target(site):
    done, calls = launch(site, "tpu", ACCELERATOR="v5p-100")
    assert done.returncode == 2 and "FIT_TARGET" in done.stderr and calls == []
    assert (
        launch(site, "tpu", ACCELERATOR="v5p-100", FIT_TARGET="v5p:2x5x5", DRY_RUN="1")[
            0
        ].returncode
        == 0
    )


# What the run says, look by look; (vm, request) at first; exit code; and what was done, in order:
# the slice created (C) or deleted (D), the run started (S).
RUNS = {
    "a new slice": (["step 1", "exit 0"], None, 0, "CS"),
    "a slice that runs": (["exit 0"], ("READY", "ACTIVE"), 0, "S"),
    "taken away": (["step 1", "taken", "exit 0"], None, 0, "CSDCS"),
    "taken away before": (["exit 0"], ("PREEMPTED", "SUSPENDED"), 0, "DCS"),
    "ssh that fails": (["lost", "step 1", "lost", "exit 0"], None, 0, "CS"),
    "a run that is preempted": (["exit 42", "exit 137", "exit 0"], None, 0, "CSSS"),
    "a bug": (["exit 1"], None, 1, "CS"),
    "a refusal": (["exit 2"], None, 2, "CS"),
    "again and again": (["exit 42"] * 5, None, 42, "CSSS"),
    "a request that failed": ([], ("", "FAILED"), 1, ""),
}


@pytest.mark.parametrize("case", RUNS)
def test_a_run_on_a_slice_goes_on_until_it_ends(site, case):
    looks, states, code, wanted = RUNS[case]
    (site / "looks").write_text("".join(f"{look}\n" for look in looks))
    for name, state in zip(("vm", "request"), states or ()):
        if state:
            (site / "cloud" / name).write_text(f"{state}\n")
    done, calls = launch(site, "tpu", RESTARTS="2")
    assert done.returncode == code, done.stderr
    marks = {" create ": "C", " delete ": "D", "--worker=all --command=": "S"}
    did = [mark for call in calls for word, mark in marks.items() if word in call]
    assert "".join(did) == wanted
    assert code or "FAILED" not in done.stderr
    # What is said is what is done: a start beyond the first is told before, its end once.
    assert done.stderr.count("; starting again (") == max(0, wanted.count("S") - 1)
    assert ("not started again after 2 restarts" in done.stderr) == (case == "again and again")


def test_a_run_that_is_not_to_be_started_again_is_not_said_to_be(site):
    (site / "looks").write_text("exit 42\n")
    done, _ = launch(site, "tpu", RESTARTS="0")
    assert done.returncode == 42 and "starting again" not in done.stderr
    assert "exit code 42; not started again after 0 restarts (RESTARTS)" in done.stderr


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"NAME": "a;touch x"}, "NAME=a;touch x"),
        ({"NAME": ""}, "set NAME"),
        ({"SLICES": "two"}, "SLICES=two"),
        ({"SWEEP": "1", "WORKERS": "0"}, "WORKERS=0"),
        ({"WORKERS": "2"}, "SWEEP=1"),
        ({"SWEEP": "1"}, "v5litepod-16"),
        ({"SWEEP": "1", "ACCELERATOR": "v5litepod-4", "SLICES": "2"}, "SLICES=2"),
        ({"SWEEP": "1", "ACCELERATOR": "v6e-8", "NAME": "a" * 39}, "a-0"),
        ({"ACCELERATOR": "v5p-100"}, "FIT_TARGET"),
    ],
)
def test_a_workload_that_cannot_be_is_one_line(site, variables, said):
    done, calls = launch(site, "gke", **variables)
    assert done.returncode == 2 and calls == [] and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ") and said in done.stderr


def test_a_workload_of_several_slices_runs_the_given_arguments(site):
    workdir = "/mnt/it's $HOME"
    done, calls = launch(site, "gke", *RECIPE, f"--workdir={workdir}", SLICES="2", PROJECT="p")
    assert done.returncode == 0, done.stderr
    assert "--target=v5e:4x4@2 " in " ".join(calls)
    assert "--num-slices=2" in calls[-1] and "--project=p" in calls[-1]
    # As the pod's shell reads it, without making an environment.
    inner = shlex.split(calls[-1].split("--command=")[1])[2]
    made, trained = inner.split("exec ")
    assert made.startswith("source launch/environment.sh; make_environment '[tpu]'")
    done = subprocess.run(
        ["bash", "-c", f'printf "%s|" {trained}'], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("|")[3:-1] == [*RECIPE, f"--workdir={workdir}"]


def test_workers_of_a_sweep_are_a_workload_each_on_one_ledger(site):
    arguments = ["--config=configs/ablations/window.py", "--workdir=/mnt/it's $HOME"]
    sweep = {"SWEEP": "1", "WORKERS": "3", "ACCELERATOR": "v5litepod-8"}
    done, calls = launch(site, "gke", *arguments, **sweep)
    assert done.returncode == 0, done.stderr
    made = [call for call in calls if call.startswith("xpk ")]
    assert [call.split()[3] for call in made] == [f"--workload=graft-{n}" for n in range(3)]
    assert len({call.split(" --cluster")[1] for call in made}) == 1  # alike but for their names
    inner = shlex.split(made[0].split("--command=")[1])[2]
    assert "GRAFT_PROCESSES" not in inner and "--num-slices=1 " in made[0]
    shown = f'python=python; printf "%s|" {inner.split("exec ")[1]}'
    ran = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, timeout=60)
    assert ran.stdout.split("|")[:-1] == ["python", "-m", "research.sweep", "run", *arguments]
    dry, calls = launch(site, "gke", *arguments, **sweep, DRY_RUN="1")
    assert not calls and dry.stdout.count("xpk workload create") == 3


def test_a_pods_own_disk_is_no_place_for_a_run(site):
    done, calls = launch(site, "gke", *RECIPE, "--workdir=runs/a")
    assert done.returncode == 2 and calls == [] and "mounted volume" in done.stderr


def test_the_task_of_skypilot_is_read_by_a_shell():
    task = yaml.safe_load((ROOT / "launch" / "sky.yaml").read_text())
    for name in ("setup", "run"):
        subprocess.run(["bash", "-n", "-c", task[name]], check=True)
    assert 42 in task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert set(task["envs"]) == {"BUCKET", "WORKDIR", "ARGUMENTS"}


def test_a_slice_that_cannot_be_had_is_asked_for_once(site):
    (site / "quota").touch()
    done, calls = launch(site, "tpu")
    assert done.returncode == 1 and "RESOURCE_EXHAUSTED" in done.stderr
    assert len([call for call in calls if " create " in call]) == 1


def test_a_slice_is_deleted_at_the_end_if_asked(site):
    done, calls = launch(site, "tpu", DELETE="1")
    assert done.returncode == 0 and "queued-resources delete graft" in calls[-1]


@pytest.mark.parametrize("platforms", ["", "cpu"])
def test_a_local_run_installs_for_the_accelerator_that_is_there(tmp_path, platforms):
    # A host of a TPU tells so without a device file, which a test cannot make.
    variables = {"TPU_WORKER_ID": "0", "JAX_PLATFORMS": platforms, "DRY_RUN": "1"}
    variables["GRAFT_VENV"] = str(tmp_path / "venv")
    done = subprocess.run(
        [f"{ROOT}/launch/local.sh"], env={**os.environ, **variables}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    extra = "" if platforms else r"\[tpu\]"
    assert f"--editable .{extra} \n" in done.stdout


def test_the_scripts_are_clean():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", "-x", *map(str, sorted((ROOT / "launch").glob("*.sh")))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def newest(tmp_path: Path, extras: str, **minors: int | None) -> subprocess.CompletedProcess:
    """`newest_python` where these names are Pythons 3.MINOR; one of None is there and fails."""
    bash = shutil.which("bash")
    for name, minor in minors.items():
        # It is asked whether its version is below one.
        tests = [f'*"(3, {least})"*) exit {(minor or 0) < least:d} ;;' for least in (11, 12)]
        path = tmp_path / "bin" / name.replace("_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!{bash}\ncase "$2" in {" ".join(tests)} esac\n')
        path.chmod(0o755)
    script = f"source {ROOT}/launch/environment.sh; newest_python {extras!r}"
    # Nothing but these Pythons is found by name.
    settings = {"PATH": f"{tmp_path}/bin"}
    return subprocess.run([bash, "-c", script], env=settings, capture_output=True, text=True)


def test_the_newest_python_that_works_is_taken(tmp_path):
    there = dict(python3_13=None, python3_12=12, python3_11=11, python3=11)
    for extras in ("", "[test]", "[fit]", "[cuda]", "[tpu]"):
        assert newest(tmp_path, extras, **there).stdout == "python3.12\n", extras


def test_cards_want_the_python_that_their_kernels_want(tmp_path):
    there = dict(python3=11)
    for extras in ("", "[tpu]", "[cuda12]"):
        assert newest(tmp_path, extras, **there).stdout == "python3\n", extras
    done = newest(tmp_path, "[cuda]", **there)
    assert done.returncode == 2 and not done.stdout
    assert "error: Python 3.12 or newer is needed for [cuda]" in done.stderr
    assert "JAX_PLATFORMS=cpu" in done.stderr
