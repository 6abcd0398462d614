"""A training run that takes seconds, with the smallest model around our backbone."""

import torch
from mmengine.dataset import DefaultSampler
from mmengine.dist import get_world_size
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner

from mmvanilla import VanillaNet
from mmvanilla.models.folding.network import deep_convs


class Classifier(BaseModel):
    """The smallest model around our backbone."""

    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = VanillaNet('5', widen_factor=1 / 64, act_num=1, **kwargs)
        self.head = torch.nn.Linear(64, 2)

    def forward(self, inputs, labels, mode='tensor'):
        logits = self.head(self.backbone(inputs)[0].mean((2, 3)))
        if mode == 'loss':
            return dict(loss=torch.nn.functional.cross_entropy(logits, labels))
        return logits


class Noise(torch.utils.data.Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, 32, 32, generator=generator), labels=index % 2)


class Nothing(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += data_samples

    def compute_metrics(self, results):
        return dict(count=len(results))


class Record(Hook):
    """Records λ of the model before each iteration of training and of evaluation."""

    priority = 'LOWEST'

    def __init__(self):
        self.train, self.val = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.train.append({conv.lambda_ for conv in deep_convs(runner.model)})

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.val.append({conv.lambda_ for conv in deep_convs(runner.model)})


def make_runner(
    work_dir,
    epochs=4,
    hook=None,
    hooks=(),
    model=None,
    train_cfg=None,
    checkpoint={},
    kind=None,
    **kwargs,
):
    dataloader = dict(
        batch_size=8 // get_world_size(),
        num_workers=0,
        dataset=Noise(),
        sampler=dict(type=DefaultSampler, shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    hook = {'type': 'mmvanilla.DeepTrainingHook', 'decay_epochs': 2, **(hook or {})}
    if checkpoint is not None:
        checkpoint = {'type': 'mmvanilla.AtomicCheckpointHook', 'interval': 1, **checkpoint}
    torch.manual_seed(0)  # the same weights for every run
    return (kind or Runner)(
        model=model or Classifier(),
        work_dir=str(work_dir),
        train_dataloader=dataloader,
        train_cfg=train_cfg or dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.01)),
        val_dataloader=dataloader,
        val_cfg={},
        val_evaluator=[Nothing()],
        custom_hooks=[hook, *hooks],
        default_hooks=dict(
            checkpoint=checkpoint,
            logger=dict(type='LoggerHook', interval=1),
        ),
        experiment_name=str(work_dir),
        log_level='WARNING',
        randomness=dict(seed=0),
        **kwargs,
    )
