#!/usr/bin/env bash
# Fetches OHIF's built application from the npm registry, once, into outputs/clinic/package: bash demo/clinic/fetch_ohif.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

version=3.12.10
[ ! -f outputs/clinic/package/dist/index.html ] || exit 0
if ! command -v npm >/dev/null; then
    echo "found no npm, which fetches OHIF; on Debian: apt-get install --no-install-recommends npm" >&2
    exit 1
fi
mkdir -p outputs/clinic
folder=$(mktemp -d outputs/clinic/fetch.XXXXXX) # a fetch that is stopped leaves no half application under its name
trap 'rm -rf "$folder"' EXIT
(cd "$folder" && npm pack --silent "@ohif/app@$version" >/dev/null && tar -xzf "ohif-app-$version.tgz")
rm -rf outputs/clinic/package
mv "$folder/package" outputs/clinic/package
