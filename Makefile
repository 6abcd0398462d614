# Each target sets up .venv first if needed, and test-NAME .venv-NAME: see tools/setup_env.sh.
PY := .venv/bin/python
DEMOS := tools/demos
PAPER := tools/paper
DIGITS := data/digits/annotations/instances_val2017.json
DIGITS_FOLDERS := data/digits_folders/val
CLUTTERED := data/digits_cluttered/val
MANY := data/digits_cluttered_57600/val
FIGURE2 := work_dirs/figure2
# Two test files at a time, each on its own core.
FAST_TESTS := -m pytest -n 2 --dist loadfile -m 'not slow and not zoo and not openvino'
# In an environment's folder; what they found stays there if they ran to their end (0 or 1).
define run_tests
	@OMP_NUM_THREADS=1 $(1)/bin/python $(FAST_TESTS) --junitxml=$(1)/running.xml; \
		code=$$?; [ $$code -gt 1 ] || mv $(1)/running.xml $(1)/tests.xml; exit $$code
endef

.PHONY: env int8 demo demo-masks demo-segmentation demo-classification demo-merging demo-seeds evidence factors factors-long table1 table2 table3 table4 table5 figure1 figure2 figure3 test test-openmmlab test-slow test-zoo test-faults test-exchange tested lint clean

env:
	@bash tools/setup_env.sh

# What 8 bits cost trained networks, beside ResNet-18 (docs/deployment.md); trains them first.
INT8 := vanillanet-6_digits resnet-18_digits retinanet_vanillanet-6_digits retinanet_resnet-18_digits \
	faster_rcnn_vanillanet-6_digits mask_rcnn_vanillanet-6_digits mask_rcnn_resnet-18_digits \
	upernet_vanillanet-6_digits
int8: $(INT8:%=work_dirs/int8/%/trained)
	@$(PY) tools/analysis_tools/quantization_cost.py $(foreach each,$(INT8),configs/digits/$(each).py $$(cat work_dirs/int8/$(each)/trained))

work_dirs/int8/%/trained: | env $(DIGITS) $(DIGITS_FOLDERS)
	@$(PY) tools/train.py configs/digits/$*.py --work-dir $(@D) --resume
	@cat $(@D)/last_checkpoint >$@

demo: env $(DIGITS)
	@$(PY) $(DEMOS)/detection.py

demo-masks: env $(DIGITS)
	@$(PY) $(DEMOS)/detection.py masks

demo-merging: env $(DIGITS)
	@$(PY) $(DEMOS)/seeds.py retinanet retinanet-merged

demo-seeds: env $(DIGITS) $(DIGITS_FOLDERS)
	@$(PY) $(DEMOS)/seeds.py

demo-segmentation: env $(DIGITS)
	@$(PY) $(DEMOS)/segmentation.py

$(DIGITS): tools/dataset_converters/digits_to_coco.py | env
	@rm -rf data/digits
	@$(PY) tools/dataset_converters/digits_to_coco.py data/digits

demo-classification: env $(DIGITS_FOLDERS)
	@$(PY) $(DEMOS)/classification.py

$(DIGITS_FOLDERS): $(wildcard tools/dataset_converters/digits_to_*.py) | env
	@rm -rf data/digits_folders
	@$(PY) tools/dataset_converters/digits_to_folders.py data/digits_folders

evidence: env $(CLUTTERED)
	@$(PY) $(PAPER)/ablations.py

# One factor of the runs of Tables 1 to 3 changed at a time
factors: env $(CLUTTERED) $(MANY)
	@$(PY) $(PAPER)/factors.py

factors-long: env $(CLUTTERED) $(MANY)
	@$(PY) $(PAPER)/factors.py --long

table1 table2 table3: env $(CLUTTERED)
	@$(PY) $(PAPER)/ablations.py --tables $(@:table%=%)

table4 figure3: env
	@$(PY) $(PAPER)/table4.py --rounds 5 --figure3 work_dirs/figure3.png

table5: env
	@$(PY) $(PAPER)/table5.py

figure1: env
	@$(PY) $(PAPER)/figure1.py configs/imagenet/vanillanet-6_8xb128_in1k.py --out work_dirs/figure1.png

figure2: $(FIGURE2)/vanillanet-9/epoch_9_deploy.pth $(FIGURE2)/resnet-50/epoch_3_deploy.pth
	@$(PY) tools/visualization/vis_cam.py --out work_dirs/figure2.png \
		--network configs/digits/vanillanet-9_cluttered.py $< --layer backbone.blocks.4.act.relu \
		--network configs/digits/resnet-50_cluttered.py $(word 2,$^) --layer backbone.layer3

$(FIGURE2)/%: | env $(CLUTTERED)
	@$(PY) tools/train.py configs/digits/$(*D)_cluttered.py --work-dir $(@D) --resume

$(CLUTTERED): $(wildcard tools/dataset_converters/digits_to_*.py) | env
	@rm -rf data/digits_cluttered
	@$(PY) tools/dataset_converters/digits_to_folders.py data/digits_cluttered --cluttered --num-train 6400 --num-val 2000

$(MANY): $(wildcard tools/dataset_converters/digits_to_*.py) | env
	@rm -rf $(@D)
	@$(PY) tools/dataset_converters/digits_to_folders.py $(@D) --cluttered --num-train 57600 --num-val 10

test: env
	$(call run_tests,.venv)

test-slow: env
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile -m slow

test-zoo: env
	@$(PY) -m pytest tests/configs/test_detector_zoo.py

# Kills, damaged files, wrong configs: the table of docs/reliability.md.
test-faults: env
	@OMP_NUM_THREADS=1 $(PY) tests/faults

# Any folder of requirements/: test-onedl, test-torch2.1, test-torch1.13, test-newest.
test-%:
	@bash tools/setup_env.sh $*
	$(call run_tests,.venv-$*)

test-openmmlab: test

# Runs that one environment starts go on in another.
test-exchange:
	@for each in requirements/*/python.txt; do bash tools/setup_env.sh $$(basename $$(dirname $$each)) || exit 1; done
	@$(PY) -m pytest -m slow tests/other_projects/test_other_environments.py

tested: env
	@$(PY) tools/tested_environments.py

lint: env
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

clean:
	rm -rf .venv .venv-* build dist mmvanilla.egg-info data/digits data/digits_folders data/digits_cluttered* work_dirs/demo* work_dirs/evidence work_dirs/figure*
