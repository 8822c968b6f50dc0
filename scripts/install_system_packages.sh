#!/usr/bin/env bash
# Installs Debian packages that some tests use, where that is possible:
#
#     scripts/install_system_packages.sh slurm-wlm munge shellcheck
#
# Without root, apt-get or a network it says so in one line and ends with 0: the tests that want the packages skip
# themselves. Packages that are already there cost nothing.
set -euo pipefail

missing=()
for package in "$@"; do
  status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [[ $status == installed ]] || missing+=("$package")
done

if [[ $# -eq 0 ]]; then
  echo "install_system_packages: name the packages to install, such as slurm-wlm munge shellcheck" >&2
  exit 2
elif [[ ${#missing[@]} -eq 0 ]]; then
  exit 0
elif ! command -v apt-get >/dev/null; then
  echo "install_system_packages: no apt-get here, continuing without: ${missing[*]}"
elif [[ $(id -u) -ne 0 ]]; then
  echo "install_system_packages: not root, continuing without: ${missing[*]} (sudo apt-get install ${missing[*]})"
else
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # A first try without `apt-get update`, which is slower than most installations.
  if apt-get install --yes --quiet --no-install-recommends "${missing[@]}" >"$log" 2>&1 ||
    { apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    echo "install_system_packages: installed ${missing[*]}"
  else
    reason=$(grep -m 1 -E '^(E|Err)' "$log" || tail -n 1 "$log")
    echo "install_system_packages: apt-get failed, continuing without: ${missing[*]} ($reason)"
  fi
fi
