#!/bin/bash
# Installs what the tests need beside Python, on Debian and Ubuntu: Redis, PostgreSQL, MariaDB, a JDK,
# Maven and curl.
# Does nothing when all is there. Without the right to install it says what to install, and fails.
set -euo pipefail

declare -A PACKAGE_OF=(
  [redis-server]=redis-server
  [java]=openjdk-17-jdk-headless
  [mvn]=maven
  [curl]=curl
  [mariadbd]=mariadb-server
)
programs=(redis-server java mvn curl mariadbd)
# Debian keeps server programs in sbin, which is not on every PATH.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

missing=()
for program in "${programs[@]}"; do
  command -v "$program" > /dev/null || missing+=("${PACKAGE_OF[$program]}")
done
# PostgreSQL keeps its programs in a folder per version.
has_postgresql() { compgen -G '/usr/lib/postgresql/*/bin/postgres' > /dev/null || command -v postgres > /dev/null; }
has_postgresql || missing+=(postgresql)
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi

install=(apt-get install -y --no-install-recommends ca-certificates "${missing[@]}")
give_up() {
  echo "services: $1. The tests need these packages; install them and start again:" >&2
  echo "    apt-get update && ${install[*]}" >&2
  exit 1
}

command -v apt-get > /dev/null || give_up "there is no apt-get on this machine"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo > /dev/null || give_up "not root, and there is no sudo"
  as_root=(sudo)
  # Without a terminal nobody can type a password.
  [ -t 0 ] || as_root=(sudo -n)
  "${as_root[@]}" true || give_up "sudo refused"
fi

echo "services: installing ${missing[*]}"
log=$(mktemp)
run() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive "$@" > "$log" 2>&1 < /dev/null || {
    tail -n 20 "$log" >&2
    give_up "'$*' failed (whole output: $log)"
  }
}
run apt-get -o DPkg::Lock::Timeout=300 update
run "${install[@]}" -o DPkg::Lock::Timeout=300
rm -f "$log"

for program in "${programs[@]}"; do
  command -v "$program" > /dev/null || give_up "$program is still not there"
done
has_postgresql || give_up "PostgreSQL is still not there"
