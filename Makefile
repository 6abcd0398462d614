# make env | demo | demo-classification | test | test-slow | lint: each sets up .venv first if needed, see tools/setup_env.sh.
PY := .venv/bin/python
DIGITS := data/digits/annotations/instances_val2017.json

DIGITS_FOLDERS := data/digits_folders/val

.PHONY: env demo demo-classification test test-slow lint clean

env:
	@bash tools/setup_env.sh

demo: env $(DIGITS)
	@$(PY) tools/demo.py

$(DIGITS): tools/dataset_converters/digits_to_coco.py | env
	@rm -rf data/digits
	@$(PY) tools/dataset_converters/digits_to_coco.py data/digits

demo-classification: env $(DIGITS_FOLDERS)
	@$(PY) tools/demo_classification.py

$(DIGITS_FOLDERS): $(wildcard tools/dataset_converters/digits_to_*.py) | env
	@rm -rf data/digits_folders
	@$(PY) tools/dataset_converters/digits_to_folders.py data/digits_folders

test: env
	@$(PY) -m pytest -m 'not slow'

test-slow: env
	@$(PY) -m pytest -m slow

lint: env
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:
	rm -rf .venv build dist mmvanilla.egg-info data/digits data/digits_folders work_dirs/demo work_dirs/demo_classification
