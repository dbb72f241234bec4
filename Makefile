# make train   train and evaluate the mini model on the toybox data set
# make test    every test
# make test-browser   the RoI explorer in JupyterLab and Chromium; installs Playwright and Chromium too
# make lab     JupyterLab on notebooks/
# make site    the course as linked pages in site/, to read without Jupyter
# All of them install what they need into .venv first, and need no network after that.

PYTHON ?= python3
PY := .venv/bin/python
RUN := runs/mini
SECONDS_OF_TRAINING ?= 295

.PHONY: train test test-browser lab site

train: .venv/installed data/toybox
	$(PY) -m minimrcnn train --data data/toybox --config mini --out $(RUN) \
		$(if $(wildcard $(RUN)/checkpoint.pt),--resume,--time-limit $(SECONDS_OF_TRAINING))

test: .venv/installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest

# Debian's Chromium where it can be had, Playwright's own elsewhere. Screenshots go to runs/test-browser/.
test-browser: .venv/installed
	$(PY) -m pip install --quiet --editable '.[browser,notebooks,test]'
	command -v chromium || command -v chromium-browser || command -v google-chrome \
		|| { apt-get update && apt-get install --yes --no-install-recommends chromium fonts-dejavu-core; } \
		|| $(PY) -m playwright install chromium
	$(PY) -m pytest -m browser -rs tests/browser

lab: .venv/installed
	mkdir -p notebooks
	$(PY) -m jupyterlab notebooks

site: .venv/installed
	$(PY) -m minimrcnn.classroom.site --out site

data/toybox: | .venv/installed
	$(PY) -m minimrcnn data toybox --out $@ --train 2000 --val 200 --size 192 --seed 0

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --requirement requirements.txt
	touch $@
