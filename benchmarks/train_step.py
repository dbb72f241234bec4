"""One training step, R-50-FPN, two pictures of 800 x 1088: forward, backward, SGD.

    python -m benchmarks.train_step

torchvision with frozen batch norm and 3 trainable layers; the same weights on both sides.
"""

from __future__ import annotations

import torch

import minimrcnn
from benchmarks.common import interleaved, photo, start, torchvision_resnet50

HEIGHT, WIDTH, OBJECTS = 800, 1088, 8


def targets() -> list[dict[str, torch.Tensor]]:
    """Eight objects a picture, COCO-like sizes, elliptic masks, full size as torchvision wants them."""
    result = []
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    for _ in range(2):
        side = 24 * (400 / 24) ** torch.rand(OBJECTS, 2)  # width, height
        corner = torch.rand(OBJECTS, 2) * (torch.tensor([WIDTH, HEIGHT]) - side)
        boxes = torch.cat([corner, corner + side], dim=1)
        centre, half = (corner + side / 2)[..., None, None], (side / 2)[..., None, None]
        masks = ((x - centre[:, 0]) / half[:, 0]) ** 2 + ((y - centre[:, 1]) / half[:, 1]) ** 2 <= 1
        labels = torch.randint(1, 91, (OBJECTS,))
        result.append({"boxes": boxes, "labels": labels, "masks": masks.to(torch.uint8)})
    return result


def main() -> None:
    """Time both in turns. Must reach 1.2x."""
    start()
    theirs = torchvision_resnet50(min_size=HEIGHT, max_size=1333).train()
    ours = minimrcnn.maskrcnn_resnet50_fpn().train()
    ours.load_state_dict(theirs.state_dict())
    images, truth = [photo(HEIGHT, WIDTH) for _ in range(2)], targets()

    def side(model: torch.nn.Module) -> object:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimiser = torch.optim.SGD(trained, lr=1e-5, momentum=0.9)

        def step() -> float:
            optimiser.zero_grad()
            loss = sum(model(images, truth).values())
            loss.backward()
            optimiser.step()
            return loss.item()

        return step

    times = interleaved({"torchvision": side(theirs), "minimrcnn": side(ours)}, repeats=5)
    for name, seconds in times.items():
        print(f"{name:12} {seconds:7.2f} s a step")
    print(f"ratio        {times['torchvision'] / times['minimrcnn']:7.2f}  (must reach 1.2)")


if __name__ == "__main__":
    main()
