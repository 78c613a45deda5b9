# Sourced by the scripts beside it: `environment EXTRAS [EXTRA…]` makes sure that .venv is complete and up to date. Where
# EXTRAS is empty, nobody has said what to install: what was chosen once stays, and a new environment gets everything.
# A start that finds it so costs a few milliseconds of sh; everything else is in install.py.

root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
venv=$root/.venv

# A server started with stdin closed would hand its first pipe the number 0.
( : <&0 ) 2>/dev/null || exec </dev/null

# What has to be the same for an environment to be kept: what is installed, how, and where (venvs cannot move).
fingerprint() {
  { cat "$root/pyproject.toml" "$root/constraints.txt" "$root/scripts/install.py" && echo "$root"; } | cksum
}

# Is the stamp of a finished installation there, is it of this checkout, and are all wanted extras in it?
complete() {
  [ -x "$venv/bin/python" ] && [ -r "$venv/installed" ] || return 1
  { read -r stamped && read -r have; } <"$venv/installed" || return 1
  [ "$stamped" = "$1" ] || return 1
  for extra in $2; do
    case " $have " in *" $extra "*) ;; *) return 1 ;; esac
  done
}

# The first Python from 3.11 on that can make environments.
find_python() {
  for name in python3 python3.13 python3.12 python3.11 python3.14 python; do
    if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      command -v "$name"
      return
    fi
  done
  echo "oxlo: no Python >= 3.11 with the venv module was found; install one (Debian: apt install python3-venv," \
    "macOS: brew install python) and run this again" >&2
  return 1
}

# The extras of the last finished installation, `all` where there is none.
chosen() {
  have=
  [ -r "$venv/installed" ] && { read -r stamped && read -r have; } <"$venv/installed"
  echo "${have:-all}"
}

environment() {
  extras= said=$1
  shift
  for extra in $(echo "${said:-$(chosen)} $*" | tr ',' ' '); do
    [ "$extra" = all ] && extra="text speech image"
    extras="$extras $extra"
  done
  print=$(fingerprint)
  complete "$print" "$extras" && return
  python=$(find_python) || exit 1
  "$python" "$root/scripts/install.py" "$root" "$print" $extras </dev/null || exit $?
}
