#!/usr/bin/env bash
# Installs the programs that the browser, clinic, Slurm and shell checks run, where root may use apt-get (Debian, Ubuntu).
# Elsewhere it says which command would. Never fails: tests whose program is missing are skipped and say so.
# Used by test.sh: bash scripts/install_programs.sh
set -euo pipefail

# package:program
needed=(chromium:chromium shellcheck:shellcheck iproute2:ip munge:munged slurmctld:slurmctld slurmd:slurmd slurm-client:sbatch
    orthanc-dicomweb:Orthanc nginx-light:nginx)
# npm fetches OHIF, without which every check of the clinic is skipped.
[ -f "$(dirname "${BASH_SOURCE[0]}")/../outputs/clinic/package/dist/index.html" ] || needed+=(npm:npm)
missing=()
for pair in "${needed[@]}"; do
    PATH=$PATH:/usr/sbin command -v "${pair#*:}" >/dev/null || missing+=("${pair%%:*}")
done
if [ "${missing[0]:-}" = chromium ] && compgen -G "$HOME/.cache/ms-playwright/chromium-*" >/dev/null; then
    missing=("${missing[@]:1}")
fi
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi
command="apt-get install -y --no-install-recommends ${missing[*]}"
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
    [ "$(id -u)" -eq 0 ] || command="sudo $command"
    echo "Some checks are skipped for want of programs; on Debian or Ubuntu this installs them: $command"
    exit 0
fi

install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "$@" >/dev/null 2>&1
}
echo "Installing ${missing[*]} for the browser, clinic, Slurm and shell checks ..."
install "${missing[@]}" && exit 0
if ! apt-get update -qq -o APT::Update::Error-Mode=any -o Acquire::http::Timeout=20 >/dev/null 2>&1; then
    echo "The package index cannot be reached: checks that need these programs are skipped."
    exit 0
fi
install "${missing[@]}" && exit 0
for package in "${missing[@]}"; do # one that this distribution lacks must not keep the others away
    install "$package" && continue
    if [ "$package" = chromium ] && playwright install --with-deps chromium >/dev/null 2>&1; then
        continue # Ubuntu has Chromium as a snap only
    fi
    echo "apt-get cannot install $package: checks that need it are skipped."
done
