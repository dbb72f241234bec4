"""The optimiser, and one update that a flag on the device can leave out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minimrcnn.engine.muon import Muon
from minimrcnn.engine.schedule import peak_rate
from minimrcnn.recipes import Recipe

# The last layers: their rows are classes or coordinates of a box, not directions that should all move alike.
OUTPUTS = ("cls_logits", "bbox_pred", "cls_score", "mask_fcn_logits")
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(model: nn.Module, recipe: Recipe) -> list[dict]:
    """The trainable parameters, in two groups: all others, and those of normalisation layers.

    Weight decay pulls towards zero, which for a convolution means a simple function, but for the scale
    of a normalisation layer only a silent channel: recipes differ in whether they decay it (torchvision
    and Detectron do, detectron2 does not), so it has a number of its own. Frozen parameters are left out.
    """
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) not in norms], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if id(p) in norms], "weight_decay": recipe.norm_weight_decay},
    ]
    return [group for group in groups if group["params"]]


def with_matrices(groups: list[dict], model: nn.Module) -> list[dict]:
    """The same groups, with the weights of hidden layers in groups of their own, for Muon."""
    hidden = {
        id(parameter)
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and name.split(".")[-2] not in OUTPUTS
    }
    divided = []
    for group in groups:
        for matrices in (True, False):
            parameters = [p for p in group["params"] if (id(p) in hidden) == matrices]
            divided.append(group | {"params": parameters, "matrices": matrices})
    return [group for group in divided if group["params"]]


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD with momentum, AdamW, or Muon; each can be told to skip, the fused ones update in one kernel."""
    groups, rate = parameter_groups(model, recipe), peak_rate(recipe)
    if recipe.optimizer == "muon":
        return Muon(with_matrices(groups, model), rate, betas=(recipe.momentum, recipe.beta2))
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(recipe.momentum, recipe.beta2), fused=True)
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=recipe.momentum, fused=True)
    for group in groups:
        for parameter in group["params"]:
            # Made here, as zeros, because the fused SGD makes it from uninitialised memory and leaves it
            # so when its first update is skipped: as it is under fp16, where the scale starts too high.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def update(optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, rate: float, skip: Tensor) -> None:
    """One step of the optimiser at the learning rate `rate`, left out where `skip` (bool, ()) is true.

    The flag never comes to the host: the fused kernels read it. A loss that is not finite thus leaves
    the weights as they were, without a GPU ever waiting to be asked. With fp16 the scaler, which looks
    for infinite gradients anyway, sets the flag in our place.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    if scaler.is_enabled():
        scaler.step(optimizer)
        scaler.update()
        return
    optimizer.grad_scale, optimizer.found_inf = None, skip.to(torch.float32)
    optimizer.step()
    del optimizer.grad_scale, optimizer.found_inf
