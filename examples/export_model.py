"""Features and ids in, quantiles in the target's own units out: one file for a server without reghead.

``torch.export`` turns a head with its normalizer into one program with a batch of any size; where ``onnx``,
``onnxscript`` and ``onnxruntime`` are installed, ONNX does the same for other runtimes. An id that training never saw
is answered as unknown inside the program. Run ``python examples/export_model.py``.
"""

import importlib.util
import io
import warnings

import torch
from torch import Tensor, nn

from reghead import CategoryNormalizer, RegressionHead

SITES, LEVELS, BATCHES = 3, (0.1, 0.5, 0.9), (1, 8, 1000)
NEEDED = ("onnx", "onnxscript", "onnxruntime")


class Served(nn.Module):
    """What a server calls: no mapping and no labels, tensors alone."""

    def __init__(self, head: RegressionHead, normalizer: CategoryNormalizer) -> None:
        super().__init__()
        self.head, self.normalizer = head, normalizer

    def forward(self, x: Tensor, site: Tensor) -> Tensor:
        """Quantiles (B, 1, Q) in the units of the target."""
        categories = {"site": site}
        return self.normalizer.inverse(self.head(x, categories), categories, output_dim=-2)


def make_model() -> Served:
    """A head with weights as they are drawn; training changes nothing below."""
    site = torch.arange(1, SITES + 1).repeat(20)
    target = 100.0 * site.unsqueeze(-1) + torch.randn(60, 1)
    normalizer = CategoryNormalizer({"site": SITES + 1}).fit(target, {"site": site})
    options = {"cardinalities": {"site": SITES + 1}, "film": ["site"], "quantiles": LEVELS}
    head = RegressionHead(4, 1, (16,), **options)
    return Served(head, normalizer).eval()


def main() -> None:
    """Export with one batch size, run with others, and compare with the model itself."""
    torch.manual_seed(0)
    model = make_model()
    example = (torch.randn(8, 4), torch.randint(0, SITES + 1, (8,)))
    batch = torch.export.Dim("batch", min=1)
    shapes = {"x": {0: batch}, "site": {0: batch}}
    file = io.BytesIO()
    torch.export.save(torch.export.export(model, example, dynamic_shapes=shapes), file)
    file.seek(0)
    runtimes = {"torch.export": (torch.export.load(file).module(), file.getbuffer().nbytes)}

    if all(importlib.util.find_spec(name) for name in NEEDED):
        import onnxruntime

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own
            program = torch.onnx.export(model, example, dynamic_shapes=shapes, dynamo=True, verbose=False)
        content = program.model_proto.SerializeToString()
        run = onnxruntime.InferenceSession(content).run
        call = lambda x, site: torch.tensor(run(None, {"x": x.numpy(), "site": site.numpy()})[0])  # noqa: E731
        runtimes["ONNX Runtime"] = (call, len(content))

    print(f"largest error {'bytes':>9}" + "".join(f"{f'batch of {n}':>14}" for n in BATCHES))
    for name, (runtime, size) in runtimes.items():
        errors = []
        for rows in BATCHES:
            x, site = torch.randn(rows, 4), torch.randint(0, SITES + 1, (rows,))
            with torch.no_grad():
                errors.append((runtime(x, site) - model(x, site)).abs().max())
        print(f"{name:13} {size:9,}" + "".join(f"{error:14.1e}" for error in errors))
    unknown = runtimes["torch.export"][0](torch.zeros(1, 4), torch.tensor([0])).flatten().tolist()
    print(f"\nunknown site, quantiles {LEVELS}: {', '.join(f'{q:.0f}' for q in unknown)}")


if __name__ == "__main__":
    main()
