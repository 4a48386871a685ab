#!/bin/sh
# Licences, bans and sources of every dependency (deny.toml); advisories as far as their database can be reached.
set -eu
cd "$(dirname "$0")/.."
command -v cargo-deny >/dev/null 2>&1 || cargo install --locked cargo-deny
cargo deny --all-features check bans licenses sources
cargo deny --all-features check advisories || {
    echo "audit: advisories were NOT checked, or some apply: see above" >&2
    [ "${AUDIT_ADVISORIES:-optional}" = optional ] || exit 1
}
