#!/bin/sh
# Installs what building and testing need and what is not there yet. Debian 12 with apt; elsewhere it says
# what is missing.
#   prepare.sh tools     compiler, C library, make, git, PostgreSQL 15 with its contrib modules, zstd
#   prepare.sh servers   Node.js with npm and Python with pip, from which the tests fetch more servers; libfaketime for tests of years
set -eu

missing=
need() { # need COMMAND-OR-FILE PACKAGE
    case $1 in
        /*) test -e "$1" ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac || missing="$missing $2"
}

case ${1:-tools} in
    tools)
        need cc gcc
        # gcc only recommends it, and nothing links without it.
        need /usr/include/stdio.h libc6-dev
        need make make
        need /usr/lib/postgresql/15/bin/postgres postgresql-15
        need zstd zstd
        need setpriv util-linux
        ;;
    servers)
        need npm npm
        need python3 python3
        python3 -m venv --help >/dev/null 2>&1 || missing="$missing python3-venv"
        need setpriv util-linux
        need faketime faketime
        ;;
    *) echo "prepare.sh: usage: prepare.sh tools|servers" >&2; exit 2 ;;
esac

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "prepare.sh: please install:$missing" >&2
        exit 1
    fi
    if [ "$(id -u)" != 0 ]; then
        echo "prepare.sh: please run as root: apt-get install$missing" >&2
        exit 1
    fi
    echo "prepare.sh: installing$missing"
    apt-get update -qq
    # The distribution would start a server of its own: nothing here needs it.
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

command -v cargo >/dev/null 2>&1 || {
    echo "prepare.sh: cargo is not installed: see the installation page of the Rust project (rustup) or your distribution" >&2
    exit 1
}
