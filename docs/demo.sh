#!/bin/sh
# The whole loop on a scratch PostgreSQL: archive, back up, drop a table, recover to the moment before.
# Everything lives in one temporary directory, which stays for you to look at.
set -eu
cd "$(dirname "$0")/.."

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '  $ %s\n' "$*"; "$@"; }

say "1. Build walhold"
cargo build --release --locked
built=${CARGO_TARGET_DIR:-target}/release/walhold

demo=$(mktemp -d /tmp/walhold-demo.XXXXXX)
chmod 755 "$demo"
mkdir "$demo/bin" "$demo/repository" "$demo/state" "$demo/socket"
cp "$built" "$demo/bin/walhold"
bin=/usr/lib/postgresql/15/bin
[ -x "$bin/postgres" ] || bin=$(pg_config --bindir)

# PostgreSQL refuses to run as root.
as_postgres=
if [ "$(id -u)" = 0 ]; then
    chown -R postgres "$demo"
    as_postgres="setpriv --reuid=postgres --regid=postgres --init-groups"
fi
pg() { printf '  $ %s\n' "$*"; (cd "$demo" && $as_postgres "$@"); }
sql() { printf '  => %s\n' "$1"; (cd "$demo" && $as_postgres "$bin/psql" -X -q -A -t -h "$demo/socket" -p 54915 -d postgres -v ON_ERROR_STOP=1 -c "$1"); }
stop() { (cd "$demo" && $as_postgres "$bin/pg_ctl" -D "$demo/data" -m immediate stop >/dev/null 2>&1) || true; }
trap stop EXIT INT TERM

say "2. One configuration file, one repository, one encryption key"
$as_postgres sh -c "umask 077; '$demo/bin/walhold' keygen > '$demo/key'"
$as_postgres tee "$demo/walhold.toml" >/dev/null <<TOML
state_dir = "$demo/state"

[repository]
url = "file://$demo/repository"

[encryption]
key_file = "$demo/key"
TOML
walhold="$demo/bin/walhold --config $demo/walhold.toml"
pg $walhold init

say "3. A scratch PostgreSQL that archives through walhold"
$as_postgres "$bin/initdb" -D "$demo/data" -A trust --data-checksums --no-instructions >"$demo/initdb.log"
$as_postgres tee -a "$demo/data/postgresql.conf" >/dev/null <<CONF
port = 54915
listen_addresses = ''
unix_socket_directories = '$demo/socket'
wal_level = replica
archive_mode = on
archive_command = '$walhold wal-push %p'
CONF
$as_postgres "$bin/pg_ctl" -D "$demo/data" -l "$demo/server.log" -w start >/dev/null
export PGHOST="$demo/socket" PGPORT=54915

say "4. Some data, and a base backup"
sql "CREATE TABLE accounts AS SELECT id, md5(id::text) AS owner, id % 1000 AS balance FROM generate_series(1, 200000) AS id"
pg $walhold backup-push --pgdata "$demo/data"
pg $walhold backup-list

say "5. Life goes on: more rows after the backup"
sql "INSERT INTO accounts SELECT id, md5(id::text), 7 FROM generate_series(200001, 250000) AS id"
before=$(sql "SELECT count(*) || ' rows, balance ' || sum(balance) FROM accounts" | tail -n 1)
echo "  accounts: $before"
sleep 1
moment=$(sql "SELECT now()" | tail -n 1)
sleep 1

say "6. The accident, at some time after $moment"
sql "DROP TABLE accounts"
sql "CREATE TABLE noticed_too_late (at timestamptz DEFAULT now())"
sql "INSERT INTO noticed_too_late DEFAULT VALUES"
sql "SELECT pg_switch_wal()" >/dev/null
pg "$bin/pg_ctl" -D "$demo/data" -m fast -w stop >/dev/null
mv "$demo/data" "$demo/data.broken"

say "7. Recover to the moment before, in one command"
pg $walhold restore --pgdata "$demo/data" --target-time "$moment" --start --pg-bin "$bin"

say "8. What came back"
after=$(sql "SELECT count(*) || ' rows, balance ' || sum(balance) FROM accounts" | tail -n 1)
echo "  accounts: $after"
[ "$before" = "$after" ] || { echo "The table is not what it was: $before" >&2; exit 1; }
printf '\nThe dropped table is back, as it was at %s. Everything is in %s; remove it when you are done.\n' "$moment" "$demo"
