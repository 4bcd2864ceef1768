# What can be done here; `make` alone says it. The work is in scripts/ and e2e/cluster/.
.DEFAULT_GOAL := help
.PHONY: help demo demo-down test check conformance differential simulate scale bench dist images chart-test crds reference health fmt

help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r a b; do printf '%-18s %s\n' "$$a" "$$b"; done

demo: ## Build two images with Kiln in a real cluster and run one; brings everything up itself
	@scripts/demo

demo-down: ## Take down what `make demo` brought up
	@scripts/demo --down

test: ## Everything: check, chart, images, a real cluster, end-to-end tests; ends with "N passed, N failed"
	@scripts/test

check: ## The fast half: format, lints, unit tests, generated CRDs, dependencies
	@scripts/check

conformance: ## BuildKit's own answers, our cases and CASES=DIR or ../shared/conformance; ends with "N passed, N failed, N skipped"
	@scripts/conformance $(CASES)

differential: ## Build each Dockerfile of DIR=DIR with Kiln and with BuildKit and compare the images
	@scripts/differential "$(DIR)"

chart-test: ## Lint the Helm chart and test what it renders
	@scripts/chart-test

simulate: ## The operator against a simulated cluster: 10,000 seeds and every mutant; SEED=n for one, with its story
	@scripts/simulate

scale: ## The operator at 10,000 ImageBuilds: table and target/scale/scale.json; about 20 minutes
	@scripts/scale

bench: ## Kiln beside BuildKit, Buildah and kaniko on the same machine; tables and target/bench/bench.json; WORKLOADS="W4 W5"
	@scripts/bench $(WORKLOADS)

health: ## kstatus, Flux and Argo CD: what they make of every status, by their own code
	@scripts/health all

dist: ## Release builds as static binaries, into target/dist
	@scripts/dist

images: ## Kiln's own images, built by Kiln, into target/images
	@scripts/images

crds: ## Write the CRDs anew from the types in crds/
	@scripts/crds

reference: ## Write the list of reasons and the statuses of the health checks anew
	@scripts/reference

fmt: ## Format the code
	cargo fmt --all
