"""The training loop of PyTorch that runs are compared with."""

import torch

import convert
from tests.helpers.arrays import relative_error
from tests.helpers.tiny import PREPROCESSING, Trial, batch

STEPS = 5


def torch_batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    data = batch(seed)
    images = (data["image"] / 255.0 - PREPROCESSING.mean) / PREPROCESSING.std
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(data["label"]).long()


class TorchTrial:
    """The loop of torchvision's reference: SGD, and a scheduler that steps after each epoch of two steps."""

    def __init__(self, run: Trial, model: torch.nn.Module, *, loss=None, after_backward=None, parts: int = 1):
        self.model = model.double()
        self.model.load_state_dict(convert.to_torch(run.model()))
        config = run.config
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, step_size=1, gamma=config.decay_factor)
        self.loss = loss or torch.nn.CrossEntropyLoss()
        self.after_backward = after_backward or (lambda model: None)
        self.parts = parts
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
        self.average.update_parameters(self.model)  # the first call copies

    def train(self, steps: int = STEPS, *, start: int = 0) -> None:
        for step in range(start, start + steps):
            self.optimizer.zero_grad()
            for images, labels in zip(*(whole.chunk(self.parts) for whole in torch_batch(step))):
                (self.loss(self.model(images), labels) / self.parts).backward()
            self.after_backward(self.model)
            self.optimizer.step()
            self.average.update_parameters(self.model)
            if step % 2:
                self.scheduler.step()


def assert_same_weights(run: Trial, model: torch.nn.Module, trees=None) -> None:
    params, batch_stats = trees or (run.state.params, run.state.batch_stats)
    expected = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    actual = convert.to_torch(run.definition.bind(params, batch_stats))
    assert {name for name in actual if "num_batches" not in name} == set(expected)
    for name, value in expected.items():
        assert relative_error(actual[name], value) < 1e-9, name


def train(run: Trial, steps: int = STEPS) -> None:
    run.train(*map(batch, range(steps)))
