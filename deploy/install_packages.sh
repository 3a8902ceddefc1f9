#!/bin/sh
# Installs Debian packages, as root or through sudo: what tests need beside Python.
set -eu
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || {
    echo "error: install these packages first, or run this as root: $*" >&2
    exit 1
  }
  exec sudo "$0" "$@"
fi
command -v apt-get >/dev/null || { echo "error: install these first: $*" >&2; exit 1; }
apt-get update -qq
# services that a package would start are not wanted: tests start their own
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod +x "$policy"
fi
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
