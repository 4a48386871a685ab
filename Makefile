# Two commands on a fresh Debian do all the set-up: `make demo` and `make test`.

# The newest stable toolchain that was tested; anything from Cargo.toml's rust-version on works.
CARGO ?= cargo

.PHONY: help demo build test soak lint doc bench bench-peers audit man prepare clean

help:            ## Show the targets
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## */\t/' | expand -t 16

demo: prepare    ## Lose a table and bring it back, on a scratch PostgreSQL
	docs/demo.sh

build:           ## Build the release binary: target/release/walhold
	$(CARGO) build --release --locked

test: prepare    ## Run the whole suite against real PostgreSQL and real stores
	tests/prepare.sh servers
	$(CARGO) test --locked --no-fail-fast

soak: prepare    ## An hour of random faults, kills and histories against everything: docs/testing.md
	tests/prepare.sh servers
	tests/soak.sh

lint:            ## Formatting and clippy, warnings refused
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings

doc:             ## API documentation, warnings refused
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps

bench:           ## Criterion benches of the parts
	$(CARGO) bench --locked

bench-peers: prepare ## Against WAL-RUS, pgBackRest and the physical floor, in one run
	$(CARGO) bench --locked --bench peers

audit:           ## Licences, bans, sources, and advisories where the network allows
	docs/audit.sh

man: build       ## Man pages and shell completions into target/
	target/release/walhold man --out-dir target/man
	target/release/walhold completions --out-dir target/completions

prepare:
	@tests/prepare.sh tools
