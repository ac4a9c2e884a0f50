# Everything runs in the virtual environment .venv, which `make setup` builds. A finished step
# leaves a stamp in .venv/.done, so a second run does nothing and an interrupted one goes on.
#
# With a ROS 2 sourced (ROS_DISTRO set) .venv sees its packages, and neither the ROS wheels nor
# our build of vision_msgs is installed. Changing between the two rebuilds .venv.

PYTHON ?= python3
ROS := $(or $(ROS_DISTRO),wheels)
DONE := .venv/.done
PY := .venv/bin/python
# pip shows its progress to a person, and nothing to a log.
PIP := $(PY) -m pip install --disable-pip-version-check $(shell test -t 2 || echo -qq)

ifeq ($(ROS),wheels)
ROS_PACKAGES := -r requirements/ros.txt
else
VENV_OPTIONS := --system-site-packages
PIP += -c requirements/sourced.txt
endif

# ROS traffic stays on this machine unless the caller says otherwise.
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST

.PHONY: help setup demo demo-sim demo-loop night-teacher default-model test test-fast \
  test-variants variant-default variant-avx2 variant-one-thread test-fuzz test-aarch64 test-py314 \
  coverage bench-node results results-check docs lint lock audit sbom clean check

help:  ## show this list
	@grep -E '^[a-z0-9-]+:.*##' Makefile | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 24
	@echo '  variables:  PYTHON=python3.12 for setup; DATA, TEACHER, STUDENT, EPOCHS,'
	@echo '              TEACHER_EPOCHS, IMGSZ, FRACTION, OUTPUT for demo'

setup: $(DONE)/training  ## build .venv (about 3 GB to download the first time)

demo: setup  ## distil a student from a teacher, export it and fly it
	$(PY) -m drone_kd_training.recipes.demo $(foreach name,DATA TEACHER STUDENT EPOCHS \
	  TEACHER_EPOCHS IMGSZ FRACTION OUTPUT,$(if $($(name)),$(option-$(name)) "$($(name))"))

option-DATA := --data
option-TEACHER := --teacher
option-STUDENT := --student
option-EPOCHS := --epochs
option-TEACHER_EPOCHS := --teacher-epochs
option-IMGSZ := --imgsz
option-FRACTION := --fraction
option-OUTPUT := --output

demo-sim: setup  ## fly the default model for 60 s in simulation, and score what a pilot had
	$(PY) -m drone_kd.cli rehearse --scene crossing --seed 2 --seconds 60 --output runs/demo-sim

demo-loop: setup  ## a flight at night: record, mine, retrain, judge, swap, score again
	$(PY) -m drone_kd_training.recipes.demo_loop $(if $(OUTPUT),--output "$(OUTPUT)")

# Where the teacher of the demos comes from: a COCO checkpoint, trained on synthetic images by day.
# SHARED: see default-model; here only weights/yolov8s-coco.pt is read.
DAY := runs/day-teacher
$(DAY)/run/best.pt: | $(DONE)/training
	.venv/bin/drone-kd generate --output $(DAY)/data --train 800 --val 60 --seed 1
	.venv/bin/drone-kd distill --data $(DAY)/data/data.yaml --teacher none \
	  --student aerial-small.yaml --output $(DAY)/run --epochs 3 --batch 2 --no-val \
	  --set pretrained="$(SHARED)/weights/yolov8s-coco.pt" --set optimizer=AdamW --set lr0=0.001 \
	  --set mosaic=0 --set close_mosaic=0 --set nbs=2 --set warmup_epochs=0.25 \
	  $(if $(wildcard $(DAY)/run/weights/last.pt),--resume)

# The teacher of `make demo` and `make demo-loop`, on other places (--seed) than they show.
# Interrupted, the same command goes on. amp=bf16 is slower on a processor without bfloat16
# instructions: leave it out.
night-teacher: $(DAY)/run/best.pt  ## train the demos' teacher (about an hour on 2 cores)
	.venv/bin/drone-kd generate --output runs/night-teacher/data --train 3000 --val 200 --seed 1 \
	  --imgsz 320 --zoom 2 --thermal --vehicles
	.venv/bin/drone-kd distill --data runs/night-teacher/data/data.yaml --teacher none \
	  --student $(DAY)/run/best.pt --output runs/night-teacher/run --epochs 3 --batch 8 \
	  --imgsz 320 --no-val --set amp=bf16 --set optimizer=AdamW --set lr0=0.002 --set lrf=0.02 \
	  --set cos_lr=True --set warmup_epochs=0.25 --set mosaic=0 --set close_mosaic=0 \
	  --set scale=0.25 --set flipud=0.5 --set nbs=8 --set freeze=3 \
	  $(if $(wildcard runs/night-teacher/run/weights/last.pt),--resume)
	cp runs/night-teacher/run/best.pt training/drone_kd_training/recipes/night-teacher.pt

# SHARED: a folder with data/, weights/ and replay/ as training/drone_kd_training/recipes/default_model.py describes.
# THERMAL: a teacher of thermal frames, if there is one. Interrupted, the same command goes on.
# On a machine that others use, too, threads that wait for each other actively take four times as
# long.
default-model: setup  ## train drone_kd/models/default.onnx anew (about two hours on 2 cores)
	OMP_WAIT_POLICY=PASSIVE $(PY) -m drone_kd_training.recipes.default_model --shared "$(SHARED)" \
	  $(if $(THERMAL),--thermal-teacher "$(THERMAL)")

PYTEST := $(PY) -m pytest --timeout=120

test: lint $(DONE)/rtx  ## lint, then run all tests
	$(PYTEST) --durations=10 --ignore=tests/training
	# Short trainings keep one core busy; the others test what happens in time, and go alone.
	OMP_NUM_THREADS=1 $(PYTEST) --durations=10 --numprocesses=2 --dist=worksteal tests/training

test-fast: setup  ## run the tests without training and without floods of ROS messages
	$(PYTEST) -m "not slow"

# No result may depend on a processor's instructions or on the number of threads.
test-variants: $(DONE)/rtx  ## run all tests as on other processors, and with one thread
	$(MAKE) -j1 --keep-going variant-default variant-avx2 variant-one-thread

variant-default:
	ATEN_CPU_CAPABILITY=default $(PYTEST)

variant-avx2:
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST)

variant-one-thread:
	OMP_NUM_THREADS=1 $(PYTEST)

# CASES: per test; SEED: of an earlier run. A case that fails stays in the test, as an @example.
test-fuzz: export FUZZ_CASES = $(or $(CASES),10000)
test-fuzz: setup  ## run tests/fuzz with 10,000 new cases each, and print their seed
	seed=$(or $(SEED),$$(od -An -N4 -tu4 /dev/urandom | tr -d ' ')); echo "SEED=$$seed"; \
	  $(PY) -m pytest --timeout=0 --hypothesis-seed=$$seed --durations=0 tests/fuzz

# After `make setup`, as root: each installs a Debian in /var/cache/drone_kd.
test-aarch64:  ## run the on-board tests for aarch64, under qemu-user (root)
	PYTHON=$(PY) sh tests/platforms/run.sh aarch64

test-py314:  ## run the on-board tests with Python 3.14, in Debian testing (root)
	PYTHON=$(PY) sh tests/platforms/run.sh py314

coverage: $(DONE)/rtx  ## run all tests, and print which code they reach
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest --timeout=240
	$(PY) -m coverage combine -q
	$(PY) -m coverage report

# YOLO_ROS: a checkout of yolo_ros (mgonzs13) to compare with. SOAK_MINUTES: default 5.
bench-node: setup  ## measure what the node costs: benchmarks/node/*.csv (about 40 minutes)
	$(PY) -m benchmarks.node $(if $(YOLO_ROS),--yolo-ros "$(YOLO_ROS)") \
	  $(if $(SOAK_MINUTES),--soak-minutes $(SOAK_MINUTES))

results: setup  ## write the tables of the results pages from benchmarks/**/*.csv
	$(PY) -m benchmarks.results

results-check: setup  ## compare each figure of README and the results with its CSV file
	$(PY) -m benchmarks.results --check

docs: .venv-docs/.done  ## build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict
	@echo "Open site/index.html; with search: python3 -m http.server -d site"

.venv-docs/.done: requirements/docs.txt
	$(PYTHON) -m venv --clear .venv-docs
	.venv-docs/bin/python -m pip install --disable-pip-version-check -qq -r $<
	@touch $@

.venv-audit/.done: requirements/audit.txt
	$(PYTHON) -m venv --clear .venv-audit
	.venv-audit/bin/python -m pip install --disable-pip-version-check -qq -r $<
	@touch $@

# For Python 3.10 to 3.14 and all platforms; the second adds ONNX Runtime to a ROS 2 installation.
COMPILE := .venv-audit/bin/uv pip compile -q --universal --python-version 3.10 --generate-hashes \
  --upgrade --no-annotate --custom-compile-command "make lock"

lock: .venv-audit/.done  ## refresh requirements/*.lock: newest versions within the bounds, hashes
	$(COMPILE) requirements/onboard.txt -o requirements/onboard.lock
	grep onnxruntime requirements/onboard.txt | \
	  $(COMPILE) - -c requirements/sourced.txt -o requirements/onboard-sourced.lock

audit: .venv-audit/.done  ## look up known vulnerabilities of requirements/*.lock (online)
	for lock in onboard onboard-sourced; do .venv-audit/bin/pip-audit --strict --disable-pip \
	  --require-hashes --progress-spinner off -r requirements/$$lock.lock || exit; done

sbom: .venv-audit/.done  ## write build/sbom.json, the on-board part in CycloneDX
	@mkdir -p build
	printf '[project]\nname = "drone_kd"\nversion = "%s"\n' \
	  "$$(sed -n 's:.*<version>\(.*\)</version>.*:\1:p' package.xml)" > build/sbom.toml
	.venv-audit/bin/cyclonedx-py requirements requirements/onboard.lock --pyproject build/sbom.toml \
	  --output-reproducible --of JSON -o build/sbom.json

lint: setup  ## check style, formatting and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:  ## remove .venv and everything built
	rm -rf .venv build install log *.egg-info training/build training/*.egg-info .venv-docs .venv-audit site .pytest_cache .ruff_cache \
	  .mypy_cache .coverage*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

check:
	@sh requirements/check.sh $(PYTHON)

$(DONE)/venv-$(ROS): | check
	@echo "[1/4] making .venv with $(PYTHON) (ROS 2: $(ROS))"
	$(PYTHON) -m venv --clear $(VENV_OPTIONS) .venv
	@mkdir -p $(DONE) && touch $@

$(DONE)/ros: requirements/onboard.txt requirements/ros.txt requirements/dev.txt \
  requirements/video.txt $(DONE)/venv-$(ROS)
	@echo "[2/4] installing the on-board packages, ROS 2 and the test tools (about 190 MB)"
	$(PIP) -r requirements/onboard.txt -r requirements/video.txt -r requirements/dev.txt \
	  $(ROS_PACKAGES)
	@touch $@

$(DONE)/interfaces: interfaces/build.py $(wildcard interfaces/*/msg/*.msg) $(DONE)/ros
	@echo "[3/4] building messages (not with a sourced ROS 2) and installing drone_kd"
ifeq ($(ROS),wheels)
	$(PY) interfaces/build.py
endif
	@touch $@

$(DONE)/package: setup.py setup.cfg package.xml $(DONE)/interfaces
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@

$(DONE)/training: training/pyproject.toml training/requirements.txt requirements/onboard.txt \
  requirements/simulation.txt requirements/record.txt $(DONE)/package
	@echo "[4/4] installing torch and Ultralytics (about 3 GB to download, some minutes)"
	$(PIP) --no-build-isolation -e ./training
	@touch $@

# A tool of the tests alone, which do without where its wheels cannot be had.
$(DONE)/rtx: requirements/rtx.txt $(DONE)/training
	$(PIP) --no-deps -r requirements/rtx.txt || \
	  echo "no TensorRT-RTX here: the tests that build with it are skipped"
	@touch $@
