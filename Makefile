# make env | demo | test | test-slow | lint: each sets up .venv first if needed, see tools/setup_env.sh.
PY := .venv/bin/python
DIGITS := data/digits/annotations/instances_val2017.json

.PHONY: env demo test test-slow lint clean

env:
	@bash tools/setup_env.sh

demo: env $(DIGITS)
	@$(PY) tools/demo.py

$(DIGITS): tools/dataset_converters/digits_to_coco.py | env
	@rm -rf data/digits
	@$(PY) tools/dataset_converters/digits_to_coco.py data/digits

test: env
	@$(PY) -m pytest -m 'not slow'

test-slow: env
	@$(PY) -m pytest -m slow

lint: env
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:
	rm -rf .venv build dist mmvanilla.egg-info data/digits work_dirs/demo
