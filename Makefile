# SPDX-License-Identifier: GPL-2.0-or-later
# The few commands people type. `make help` lists them.

.DEFAULT_GOAL := help
.PHONY: help cluster test test-systemd bootstrap build deb format lint sim fuzz mutate coverage soak chaos damage stress measure prove bench bench-etcd cost clean

# The libraries that a release is built upon do not watch for overlapping accesses either: see Package.swift.
release = -c release -Xswiftc -enforce-exclusivity=unchecked

# Builds by name: a plain `swift build` also compiles every tool of the packages we use.
define programs
@for product in $(2); do swift build $(if $(filter release,$(1)),$(release),-c $(1)) --product $$product || exit 1; done
endef

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

cluster: ## build, then run a cluster on loopback (NODES=3 DATA=dir); Ctrl-C stops it
	@scripts/cluster "$(NODES)" "$(DATA)"

test: ## install what is missing, build, run every test
	@scripts/test

test-systemd: ## units, sandbox and journal on real machines (root, nspawn); TESTS="name …"
	@scripts/test-systemd $(TESTS)

bootstrap: ## install the Debian packages that a build needs
	@scripts/bootstrap

build: bootstrap ## release build of every program
	swift build $(release)

deb: ## Debian packages, in packaging/out
	@packaging/build-deb.sh

sim: bootstrap ## a long simulation: SEEDS=10000 FROM=1
	swift build --product aspen-sim
	.build/debug/aspen-sim sweep --from $(or $(FROM),1) --count $(or $(SEEDS),10000)

fuzz: ## libFuzzer on every decoder and on recovery, SECONDS=60 each (TARGET=name: that one)
	@scripts/fuzz "$(or $(SECONDS),60)" "$(TARGET)"

mutate: bootstrap ## how many one-line faults of RaftCore and KVCore the simulator finds (COUNT=200, SEEDS=1000)
	@Tests/Mutation/mutate --count $(or $(COUNT),200) --seeds $(or $(SEEDS),1000)

coverage: ## line and region coverage of each layer by tests (TARGETS="…"), and pages in .build/coverage/html
	@scripts/coverage $(TARGETS)

soak: bootstrap ## daemons of a real cluster killed for SECONDS_TO_RUN=60, every write checked; then new seeds for MINUTES=10
	$(call programs,debug,aspend-net aspend-raft aspend-gossip aspend-egress aspen-node aspen-cli aspen-bench aspen-sim)
	@scripts/soak "$(or $(SECONDS_TO_RUN),60)" "$(or $(MINUTES),10)" "$(FROM)"

chaos: bootstrap ## kills, pauses, partitions, full disks, wrong clocks for MINUTES=10 (SEED=n), then every answer is judged
	$(call programs,debug,aspend-net aspend-raft aspend-gossip aspend-egress aspen-node aspen-cli aspen-sim)
	@Tests/Integration/chaos --minutes "$(or $(MINUTES),10)" $(if $(SEED),--seed $(SEED))

damage: ## flip bits in a cluster's files for ROUNDS=500, cut the power of three nodes CUTS=100 times
	@scripts/damage "$(or $(ROUNDS),500)" "$(or $(CUTS),100)" $(SEED)

stress: ## commits beside checkpoints at full speed for MINUTES=10, then without their fence: that must fail
	@scripts/stress "$(or $(MINUTES),10)"

measure: bootstrap ## fail-over, idle cost and start of a real cluster of release programs, in figures
	$(call programs,release,aspend-net aspend-raft aspend-gossip aspend-egress aspen-node aspen-cli)
	@ASPEN_BIN_DIR=.build/release Tests/Integration/measure

prove: bootstrap ## tries the promises about size, at full size, by release programs (NAMES="learner follower …")
	$(call programs,release,aspend-net aspend-raft aspend-gossip aspend-egress aspen-node aspen-cli aspen-bench)
	@ASPEN_BIN_DIR=.build/release Tests/Integration/prove $(NAMES)

cost: bootstrap ## instructions and allocations of a put, of release programs under callgrind (WRITE=1: the new baseline)
	$(call programs,release,aspend-net aspend-raft aspend-gossip aspend-egress aspen-node aspen-cli aspen-bench)
	@python3 Tests/Benchmarks/put_cost.py $(if $(WRITE),--write)

bench: bootstrap ## each operation of three nodes of release programs, in figures (ROUNDS=5)
	$(call programs,release,aspend-net aspend-raft aspend-gossip aspend-egress aspen-node aspen-cli aspen-bench)
	@ASPEN_BIN_DIR=.build/release Tests/Benchmarks/bench alone

bench-etcd: bootstrap ## side by side with Debian's etcd in one run, then what has no peer (ROWS="puts64 size …" ROUNDS=5)
	$(call programs,release,aspend-net aspend-raft aspend-gossip aspend-egress aspen-node aspen-cli aspen-bench)
	@ASPEN_BIN_DIR=.build/release Tests/Benchmarks/bench etcd

format: ## format every source file
	swift format format -i -r --configuration .swift-format Sources Tests Package.swift

lint: ## complain about format
	swift format lint -s -r --configuration .swift-format Sources Tests Package.swift

clean: ## remove what was built
	rm -rf .build .build-*
