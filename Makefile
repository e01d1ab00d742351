# Everything a newcomer needs; `make help` lists it. Needs make and Python >= 3.11, nothing else.
PYTHON ?= python3
VENV ?= .venv
OUT ?= out
BIN := $(VENV)/bin
IMAGE := demos/images/drawing.png

.DEFAULT_GOAL := help
.PHONY: help try test check format weights eval pictures bench clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

# One environment; each stamp is an installation step, repeated only when pyproject.toml changes.
$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mm needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --editable '.[test]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $(VENV)/.installed $(VENV)/.installed-test $@

try: $(VENV)/.installed ## install, then caption, detect and segment a drawing
	$(BIN)/mm caption $(IMAGE) --save $(OUT)
	$(BIN)/mm detect $(IMAGE) --label "red car" --label "blue house" --label "black cat" --save $(OUT)
	$(BIN)/mm segment $(IMAGE) --label "red car" --label "blue house" --label "black cat" --save $(OUT)
	@echo "The annotated pictures lie in $(OUT)/:"
	@ls $(OUT)/*.png

test: $(VENV)/.installed-test ## install, then run the tests
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev ## formatting, lint, types and tests: the line that CI runs
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest

format: $(VENV)/.installed-dev ## format and sort the imports
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

weights: $(VENV)/.installed ## train the embedded weights anew (hours on two cores)
	$(BIN)/python -m mm.recipes.tiny --work runs/tiny
	$(BIN)/python -m mm.recipes.matting --work runs/matte
	$(BIN)/python -m mm.recipes.soft_towers --work runs/soft
	$(BIN)/python -m mm.recipes.tiny --work runs/words --init tiny --pair-steps 0 --heads-steps 0 --names-steps 0 \
		--counts-steps 0 --words-steps 550

eval: $(VENV)/.installed ## measure the embedded weights; writes the scores and the README's table
	$(BIN)/mm eval scenes --out mm/weights/tiny/scores.json --readme README.md
	$(BIN)/mm eval scenes --unseen --out mm/weights/tiny/scores_unseen.json --readme README.md

pictures: $(VENV)/.installed ## draw the README's pictures anew
	$(BIN)/python demos/read_picture.py
	$(BIN)/mm segment demos/images/drawing.png -l "red car" -l "black cat" --save demos/images
	$(BIN)/mm matte demos/images/drawing.png -l "black cat" --over gold --save demos/images

bench: $(VENV)/.installed ## time the library on this machine
	$(BIN)/mm bench

clean: ## remove the environments and everything that was made
	rm -rf .venv .ci-venv $(OUT) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
