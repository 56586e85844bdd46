# Everything that one does with the sources.  A virtual environment in .venv is
# made from pyproject.toml, the compiled modules are built beside their sources
# by meson (through setup.py); nothing is done twice when nothing has changed.
#
#   make run      build, and serve a trial on 127.0.0.1:2525
#   make test     the test suite;  TESTS="tests/unit -k reply" for a part of it
#   make lint     ruff and mypy
#   make bench    side by side with other servers;  BENCH_SECONDS, BENCH_MESSAGES, PEERS=all
#   make crash    the server under load, killed again and again (docs/crash-test.md);  CRASH_SECONDS, CRASH_SEEDS
#   make fuzz     coverage-guided fuzzing;  FUZZ_SECONDS
#   make asan     the suite under AddressSanitizer
#   make prove    fuzzer and sanitizer find the defects that we plant for them
#   make cover    line coverage, of the compiled modules too
#   make wheels   wheels for manylinux and musllinux (needs docker or podman)
#   make cert     a key and a self-signed certificate in the current directory;  CERT="--qmail /var/qmail"
#   make dist     sdist and wheel for this machine, in dist/
#   make clean    remove all that was built;  make distclean  the environment too

PYTHON ?= python3
VENV   ?= .venv
RUN    ?=
TESTS  ?=
export FUZZ_SECONDS  ?= 60
export BENCH_SECONDS ?= 2
BENCH_MESSAGES ?= 1000000
CRASH_SECONDS ?= 300
CRASH_SEEDS ?= 1000
PEERS  ?=
CERT   ?=

python  = $(VENV)/bin/python
# A .pxd beside a .py: that is compiled too.
shapes   = $(wildcard fastsmtp/*.pxd fastsmtp/*/*.pxd)
compiled = $(wildcard fastsmtp/*.pyx fastsmtp/*.h) $(shapes) $(wildcard $(shapes:.pxd=.py))
# One group of pyproject.toml a stamp: what is not asked for is not downloaded.
install = $(python) tools/requirements.py $(1) > $(VENV)/$(2).txt && \
          $(python) -m pip install --quiet --disable-pip-version-check -r $(VENV)/$(2).txt && touch $@

.DELETE_ON_ERROR:
.PHONY: run test crash lint bench cert fuzz asan prove cover wheels dist build clean distclean

run: $(VENV)/built
	@printf '%s\n' 'A trial on 127.0.0.1:2525: every recipient is accepted, all mail is kept in a Maildir,' \
	    'nothing leaves this machine. Send the first mail from another terminal:' '' \
	    '  printf "Subject: first\n\nHello.\n" | curl --crlf -T - --mail-from me@example.org --mail-rcpt you@example.org smtp://127.0.0.1:2525' ''
	@exec $(python) -m fastsmtp serve $(RUN)

test: $(VENV)/test $(VENV)/built
	$(python) -m pytest $(TESTS)

crash: $(VENV)/test $(VENV)/built
	CRASH_SEEDS=$(CRASH_SEEDS) $(python) -m pytest -q tests/unit/test_journal_crash.py tests/unit/test_queue_index_crash.py
	$(python) -m pytest -q tests/integration/test_journal_strace.py tests/integration/test_queue_strace.py
	CRASH_SECONDS=$(CRASH_SECONDS) $(python) -m pytest -s --timeout 0 tests/integration/test_queue_kill.py

lint: $(VENV)/lint $(VENV)/test $(VENV)/bench
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

bench: $(VENV)/bench $(VENV)/test $(VENV)/built
	$(python) bench/load/run.py --seconds $(BENCH_SECONDS) $(if $(PEERS),--peers $(PEERS))
	$(python) bench/bench_dns.py
	$(python) bench/bench_policy.py
	$(python) bench/bench_tls.py
	$(python) bench/bench_delivery.py
	$(python) bench/bench_startup.py
	$(python) bench/bench_journal.py
	$(python) bench/bench_index.py --rows $(BENCH_MESSAGES)
	$(python) bench/bench_deferred.py --messages $(BENCH_MESSAGES)
	$(python) -m pytest bench

cert: $(VENV)/built
	@$(python) -m fastsmtp cert $(CERT)

fuzz: $(VENV)/test $(VENV)/built
	$(python) tests/fuzz/run.py

asan: $(VENV)/test $(VENV)/build
	$(python) tools/asan.py $(TESTS)

prove: $(VENV)/test $(VENV)/build
	$(python) tests/fuzz/prove.py
	$(python) tools/asan.py --prove

cover: $(VENV)/build $(VENV)/cover $(VENV)/test
	$(python) tools/cover.py $(TESTS)

wheels: $(VENV)/wheels
	$(python) -m cibuildwheel --output-dir dist

dist: $(VENV)/wheels
	$(python) -m build --outdir dist

build: $(VENV)/built

$(python):
	@tools/prerequisites $(PYTHON)
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/build $(VENV)/test $(VENV)/lint $(VENV)/bench $(VENV)/cover $(VENV)/wheels: $(VENV)/%: pyproject.toml tools/requirements.py | $(python)
	@echo "Fetching what '$*' needs into $(VENV)"
	@$(call install,$*,$*)

# The headers may have gone since the environment was made: look again before a compiler does.
$(VENV)/built: $(VENV)/build setup.py meson.build meson.options $(compiled) $(wildcard fastsmtp/meson.build fastsmtp/*/meson.build)
	@tools/prerequisites $(python)
	@echo 'Building the compiled modules'
	@$(python) setup.py build_ext --inplace > $(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	@touch $@

clean:
	rm -rf build dist htmlcov .benchmarks .coverage .coverage.* $(VENV)/built fastsmtp/*.so fastsmtp/*/*.so fastsmtp/*.c \
	    fastsmtp/.*.new fastsmtp/*/.*.new
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache
