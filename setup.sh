#!/usr/bin/env bash
# Makes .venv with what requirements.txt asks for, once, and runs a command in it:
#
#   ./setup.sh pytest
#   ./setup.sh python classifier.py --help
#
# PYTHON names another interpreter than python3 (3.11 or newer).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=$here/.venv
cpu_index=https://download.pytorch.org/whl/cpu

say() { printf 'setup.sh: %s\n' "$1" >&2; }

wanted=$( (echo "$venv"; cat "$here/requirements.txt" "$here/constraints.txt" "${BASH_SOURCE[0]}") | cksum)

install_torch() {
  local version
  version=$(sed -n 's/^torch==//p' "$here/requirements.txt")
  # PyTorch's package for Linux on the general index carries gigabytes of CUDA. Without an NVIDIA GPU, take a CPU
  # build where one can be found: among the indexes that pip is set up with, or PyTorch's own.
  if [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null; then
    "$venv/bin/pip" install -qq "torch==$version+cpu" 2>/dev/null && return
    "$venv/bin/pip" install -qq --retries 1 --timeout 15 --index-url "$cpu_index" "torch==$version" 2>/dev/null && return
    say "no CPU build of torch $version within reach; the general one, with CUDA, is larger"
  fi
  "$venv/bin/pip" install -qq "torch==$version"
}

if [ "$(cat "$venv/.installed" 2>/dev/null)" != "$wanted" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    say "$python is not Python 3.11 or newer; set PYTHON to one that is"
    exit 2
  }
  say "installing into .venv; a few minutes, once"
  "$python" -m venv --clear "$venv" || {
    say "$python cannot make a virtual environment; on Debian or Ubuntu install python3-venv"
    exit 2
  }
  export PIP_DISABLE_PIP_VERSION_CHECK=1
  install_torch
  "$venv/bin/pip" install -qq --requirement "$here/requirements.txt" --constraint "$here/constraints.txt"
  printf '%s' "$wanted" >"$venv/.installed"
fi

export VIRTUAL_ENV=$venv PATH=$venv/bin:$PATH
[ $# -eq 0 ] || exec "$@"
