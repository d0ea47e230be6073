#!/usr/bin/env bash
# Set up palkit and run the compendium. Needs Python >= 3.11 (with venv) and git; see --help.
set -euo pipefail
start=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'EOF'
usage: ./run_all.sh [run]  [--profile NAME] [options]  main job: sweep, figures, notebooks, report; did it reproduce?
       ./run_all.sh test   [pytest options]            lint, types, docs, tests (also in a browser), notebook regression
       ./run_all.sh campaign [pytest options]          the long versions of tests: hundreds of runs, killed and compared
       ./run_all.sh lab    [jupyter lab options]       open JupyterLab in notebooks/
       ./run_all.sh coverage                           line and branch coverage of the tests, without notebooks
       ./run_all.sh docs                               the documentation as pages, in site/
       ./run_all.sh setup                              only create .venv and fetch weights and data
       ./run_all.sh --help

Profiles are the files of notebooks/sweeps (default, quick, paper, simulation, ablation-*, ...), by name. What ends in
.yaml or .yml is a file, even if a profile has that name: ./default.yaml is yours, default is the profile. What comes out
lands in one folder, runs/studies/<name>/, of a file of yours runs/studies/<name>-<checksum of its path>/. figures/<name>/
holds the committed results of a profile, the reference: the main job ends with how yours compare.
Options of the main job: --dry-run prints the grid with estimates of time and memory and starts nothing; --watch shows
a table of all runs; --jobs N runs at a time; --engine ray [--address HOST:PORT] [--gpus SHARE] computes on a Ray
cluster; --time-limit SECONDS per run; --no-notebooks starts no kernels.

Every command first does what is missing of the set-up: .venv with the pinned packages of requirements.lock,
and the embedded weights, verified by checksum, in .cache/. Finished runs are found again and not repeated.
Variables: PYTHON (interpreter for .venv), PALKIT_CACHE, PALKIT_RUNS, PALKIT_DEVICE (cpu, cuda, mps),
PALKIT_MEMORY (RAM for cached inputs, as 4G), PALKIT_CHROMIUM (browser of the tests, if not in PATH).
EOF
}

say() { printf '\n== %s\n' "$*"; }

setup() {
  local python=${PYTHON:-python3} stamp
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "error: $("$python" --version) is too old; set PYTHON to a Python >= 3.11." >&2; exit 1; }
  stamp="$(cat requirements.lock pyproject.toml | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')"
  if [ "$(cat .venv/palkit-setup 2>/dev/null)" != "$stamp" ]; then
    say "creating .venv with the pinned packages (several GB, minutes)"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --disable-pip-version-check --progress-bar off --quiet --require-hashes -r requirements.lock
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable .
    echo "$stamp" > .venv/palkit-setup
  fi
  .venv/bin/palkit fetch
}

run() {
  local sweep=default arguments=() dry=
  while [ $# -gt 0 ]; do
    case $1 in
      --profile | --sweep) sweep=${2:?$1 needs a name}; shift 2 ;;
      --dry-run) dry=1; arguments+=("$1"); shift ;;
      --watch | --no-notebooks) arguments+=("$1"); shift ;;
      --jobs | --engine | --address | --gpus | --time-limit | --device) arguments+=("$1" "${2:?$1 needs a value}"); shift 2 ;;
      *) echo "error: unknown option $1" >&2; usage >&2; exit 2 ;;
    esac
  done
  case $sweep in
    /*) ;;
    *.yaml | *.yml) sweep=$start/$sweep ;;
    *) compgen -G "notebooks/sweeps/$sweep.y*ml" > /dev/null ||
      { echo "error: there is no profile $sweep; there are: $(cd notebooks/sweeps && echo *.y*ml | sed 's/\.ya\?ml//g')" >&2; exit 2; } ;;
  esac
  local status=0
  say "sweep $sweep"
  .venv/bin/palkit sweep "$sweep" ${arguments[@]+"${arguments[@]}"} || status=$?
  [ -z "$dry" ] || return "$status"
  say "study of $sweep"
  .venv/bin/palkit study "$sweep" || status=$?
  say "done in $SECONDS s; single runs: ${PALKIT_RUNS:-runs}/<data set>/<hash>/"
  say "did $sweep reproduce?"
  .venv/bin/palkit reproduce "$sweep" || status=$?
  return "$status"
}

docs() {
  # Afresh, since what was read before would warn of nothing, and moved when done, so that site/ holds no older page.
  rm -rf .cache/docs
  .venv/bin/sphinx-build --quiet --fail-on-warning --keep-going -d .cache/docs/pages docs .cache/docs/site
  rm -rf site
  mv .cache/docs/site site
  echo "documentation: site/index.html"
}

check() {
  say "lint and types"
  .venv/bin/ruff check palkit tests benchmarks campaigns notebooks data .ci
  .venv/bin/ruff format --check palkit tests benchmarks campaigns data .ci
  .venv/bin/mypy
  say "documentation"
  docs
  say "tests and notebook regression"
  # What a run or a label writes is forced to the disk, a fifth of the time: tests write to memory if there is plenty.
  local room
  room=$(df -BG --output=avail /dev/shm 2>/dev/null | tail -n 1 | tr -dc 0-9) || true
  if [ "${room:-0}" -ge 6 ] && ! grep -q " /dev/shm .*noexec" /proc/mounts; then
    PYTEST_DEBUG_TEMPROOT=$(mktemp -d /dev/shm/palkit-tests-XXXXXX)
    export PYTEST_DEBUG_TEMPROOT
    trap 'rm -rf "$PYTEST_DEBUG_TEMPROOT"' EXIT
  fi
  # One thread, as in the sweep: the last bits of a result depend on the number of threads. Where a test takes two, they
  # sleep while they wait: spinning, they would take the processors from each other and from the other worker.
  # A file, or a notebook with its kernel, stays in one worker; in their order, as the longest have few tests.
  OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive .venv/bin/python -m pytest tests notebooks \
    --nbval --nbval-sanitize-with tests/nbval_sanitize.cfg --numprocesses logical --maxprocesses 8 \
    --max-worker-restart 0 --dist loadfile --no-loadscope-reorder "$@"
}

campaign() {
  OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests -m campaign -o faulthandler_timeout=7200 "$@"
}

# Not with the notebooks: nbval starts no kernels beside pytest-cov. What child processes execute is not counted.
coverage() {
  OMP_NUM_THREADS=1 .venv/bin/python -m pytest tests --cov "$@"
}

case ${1:-run} in
  -h | --help | help) usage ;;
  setup) setup ;;
  test) shift; setup; check "$@" ;;
  campaign) shift; setup; campaign "$@" ;;
  coverage) shift; setup; coverage "$@" ;;
  docs) setup; docs ;;
  lab) shift; setup; cd notebooks; exec ../.venv/bin/jupyter lab "$@" ;;
  run) [ $# -gt 0 ] && shift; setup; run "$@" ;;
  --*) setup; run "$@" ;;
  *) echo "error: unknown command $1" >&2; usage >&2; exit 2 ;;
esac
