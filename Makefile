# Each target sets up .venv first if needed, the onedl ones .venv-onedl: see tools/setup_env.sh.
PY := .venv/bin/python
DIGITS := data/digits/annotations/instances_val2017.json
DIGITS_FOLDERS := data/digits_folders/val
# Two files of tests at a time, on a core each.
FAST_TESTS := -m pytest -n 2 --dist loadfile -m 'not slow and not zoo'

.PHONY: env demo demo-masks demo-segmentation demo-classification demo-merging test test-slow test-zoo test-onedl lint clean

env:
	@bash tools/setup_env.sh

demo: env $(DIGITS)
	@$(PY) tools/demo.py

demo-masks: env $(DIGITS)
	@$(PY) tools/demo.py masks

demo-merging: env $(DIGITS)
	@$(PY) tools/demo_merging.py

demo-segmentation: env $(DIGITS)
	@$(PY) tools/demo_segmentation.py

$(DIGITS): tools/dataset_converters/digits_to_coco.py | env
	@rm -rf data/digits
	@$(PY) tools/dataset_converters/digits_to_coco.py data/digits

demo-classification: env $(DIGITS_FOLDERS)
	@$(PY) tools/demo_classification.py

$(DIGITS_FOLDERS): $(wildcard tools/dataset_converters/digits_to_*.py) | env
	@rm -rf data/digits_folders
	@$(PY) tools/dataset_converters/digits_to_folders.py data/digits_folders

test: env
	@OMP_NUM_THREADS=1 $(PY) $(FAST_TESTS)

test-slow: env
	@$(PY) -m pytest -m slow

test-zoo: env
	@$(PY) -m pytest tests/test_detector_zoo.py

test-onedl:
	@bash tools/setup_env.sh onedl
	@OMP_NUM_THREADS=1 .venv-onedl/bin/python $(FAST_TESTS)

lint: env
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:
	rm -rf .venv .venv-onedl build dist mmvanilla.egg-info data/digits data/digits_folders work_dirs/demo*
