"""A small ``aam`` to import: the command's modules, names and order of things, on the stand-in of the examples."""

import json
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from adapters._hosts import example

TEXT = (
    *("--table", "--unifrac-matrix", "--metadata", "--metadata-column", "--output-dir", "--resume-from"),
    *("--target-transform", "--normalize-by", "--normalize-targets-by", "--quantiles", "--loss-config"),
    *("--categorical-columns", "--regressor-hidden-dims", "--conditional-output-scaling"),
)
CHOICES = {
    "--loss-type": ("huber", ["mse", "mae", "huber", "quantile", "asymmetric"]),
    "--categorical-fusion": ("concat", ["concat", "add"]),
    "--output-activation": ("none", ["none", "relu", "softplus", "exp"]),
    "--device": ("cpu", ["cpu", "cuda"]),
}
NUMBERS = {
    "--epochs": 1,
    "--batch-size": 8,
    "--embedding-dim": 16,
    "--attention-heads": 2,
    "--attention-layers": 1,
    "--max-bp": 12,
    "--token-limit": 8,
    "--rarefy-depth": 1,
    "--num-workers": 0,
    "--warmup-steps": 1,
    "--seed": 0,
    "--out-dim": 1,
    "--categorical-embed-dim": 16,
}
RATES = {
    "--lr": 1e-3,
    "--test-size": 0.25,
    "--over-penalty": 1.0,
    "--under-penalty": 1.0,
    "--regressor-dropout": 0.0,
    "--categorical-lr": None,
}
SWITCHES = ("--bounded-targets", "--learnable-output-scale", "--residual-regression-head", "--log-transform-targets")


class CategoricalEncoder:
    """Never used: the adapter's stands in its place."""


class BIOMLoader:
    """Reads sequences by sample from JSON."""

    def load_table(self, path: str) -> dict[str, list[str]]:
        table: dict[str, list[str]] = json.loads(Path(path).read_text())
        return table


class ASVDataset:
    """Tokens, counts and categories of each sample."""

    def __init__(
        self, table: Any, metadata: Any = None, max_bp: int = 12, token_limit: int = 8, **options: Any
    ) -> None:
        self.table, self.sample_ids, self.max_bp = table, list(table), max_bp
        self.count_min, self.count_max = options.get("count_min"), options.get("count_max")
        self.count_scale = None
        if options.get("normalize_counts"):
            self.count_min, self.count_max = self.count_min or 1.0, self.count_max or 4.0
            self.count_scale = self.count_max - self.count_min
        encoder = options.get("categorical_encoder")
        assert encoder is None or encoder.is_fitted
        ids = {} if encoder is None else encoder.transform(metadata, sample_ids=self.sample_ids)
        self.categories = [{c: int(ids[c][i]) for c in ids} for i in range(len(self.sample_ids))]

    def __len__(self) -> int:
        return len(self.sample_ids)

    def get_normalization_params(self) -> None:
        return None

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = self.sample_ids[index]
        rows = [[5, *("0ACGT".index(base) for base in sequence)][: self.max_bp + 1] for sequence in self.table[sample]]
        item: dict[str, Any] = {"tokens": torch.tensor(rows), "counts": torch.ones(len(rows), 1), "sample_id": sample}
        if self.categories[index]:
            item["categorical_ids"] = self.categories[index]
        return item


def collate_fn(samples: list[dict[str, Any]], token_limit: int, asv_sampling: str = "first") -> dict[str, Any]:
    """One batch, padded with sequences of zeros."""
    width = samples[0]["tokens"].shape[1]
    batch: dict[str, Any] = {
        "tokens": torch.zeros(len(samples), token_limit, width, dtype=torch.long),
        "counts": torch.zeros(len(samples), token_limit, 1),
        "sample_ids": [sample["sample_id"] for sample in samples],
    }
    for i, sample in enumerate(samples):
        tokens = sample["tokens"]
        order = torch.randperm(len(tokens)) if asv_sampling == "random" else torch.arange(len(tokens))
        batch["tokens"][i, : len(tokens)] = tokens[order]
        batch["counts"][i, : len(tokens)] = sample["counts"]
    if "y_target" in samples[0]:
        batch["y_target"] = torch.stack([sample["y_target"] for sample in samples])
    if "categorical_ids" in samples[0]:
        columns = samples[0]["categorical_ids"]
        batch["categorical_ids"] = {c: torch.tensor([s["categorical_ids"][c] for s in samples]) for c in columns}
    return batch


def train(here: ModuleType, **values: Any) -> None:
    """What ``aam train`` does, in its order; parts are looked up in its module."""
    import click
    import pandas

    aam: Any = here
    try:
        if values["batch_size"] % 2:
            raise ValueError("batch_size must be even (for UniFrac)")
        torch.manual_seed(values["seed"])
        table = aam.BIOMLoader().load_table(values["table"])
        metadata = pandas.read_csv(values["metadata"], sep="\t")
        order = torch.randperm(len(table)).tolist()
        names = [list(table)[i] for i in order]
        split = max(4, int(values["test_size"] * len(names)))
        frames = [metadata[metadata["sample_id"].isin(part)] for part in (names[split:], names[:split])]
        encoder = cardinalities = None
        if values["categorical_columns"]:
            encoder = aam.CategoricalEncoder()
            encoder.fit(frames[0], columns=values["categorical_columns"].split(","))
            cardinalities = encoder.get_cardinalities()
        loaders = []
        for part, frame in zip((names[split:], names[:split]), frames, strict=True):
            dataset = aam.ASVDataset(
                table={sample: table[sample] for sample in part},
                metadata=frame,
                max_bp=values["max_bp"],
                token_limit=values["token_limit"],
                target_column=values["metadata_column"],
                normalize_targets=False,
                normalize_counts=False,
                categorical_encoder=encoder,
            )
            assert dataset.get_normalization_params() is None
            collate = partial(collate_fn, token_limit=values["token_limit"])
            loaders.append(torch.utils.data.DataLoader(dataset, batch_size=values["batch_size"], collate_fn=collate))
        model = aam.SequencePredictor(
            embedding_dim=values["embedding_dim"],
            max_bp=values["max_bp"],
            token_limit=values["token_limit"],
            out_dim=values["out_dim"],
            bounded_targets=values["bounded_targets"],
            output_activation=values["output_activation"],
            categorical_cardinalities=cardinalities,
            categorical_embed_dim=values["categorical_embed_dim"],
            categorical_fusion=values["categorical_fusion"],
        )
        loss_fn = aam.MultiTaskLoss(nuc_penalty=0.0, target_loss_type=values["loss_type"], quantiles=None)
        optimizer = example("_sequence_trainer").create_optimizer(model, values["lr"], values["categorical_lr"])
        trainer = aam.Trainer(model=model, loss_fn=loss_fn, optimizer=optimizer, device=values["device"])
        trainer.scheduler = None
        if values["resume_from"]:
            trainer.load_checkpoint(values["resume_from"])
        output = Path(values["output_dir"])
        trainer.train(*loaders, num_epochs=values["epochs"], checkpoint_dir=str(output / "checkpoints"))
        config = {} if encoder is None else {"categorical_encoder": encoder.to_dict()}
        trainer.save_checkpoint(str(output / "final_model.pt"), values["epochs"] - 1, 0.0, config=config)
    except Exception as error:
        raise click.ClickException(str(error)) from error


def modules() -> dict[str, ModuleType]:
    """The modules of the stand-in by their names."""
    import click

    model, training = example("_sequence_predictor"), example("_sequence_trainer")
    made = {
        name: ModuleType(name)
        for name in (
            *("aam", "aam.cli", "aam.cli.train", "aam.cli.utils", "aam.data", "aam.data.dataset"),
            *("aam.data.biom_loader", "aam.models", "aam.models.sequence_predictor", "aam.training"),
            "aam.training.losses",
        )
    }
    here = made["aam.cli.train"]
    names = {"BIOMLoader": BIOMLoader, "ASVDataset": ASVDataset, "CategoricalEncoder": CategoricalEncoder}
    parts = {"SequencePredictor": model.SequencePredictor, "MultiTaskLoss": _Loss, "Trainer": training.Trainer}
    for name, value in {**names, **parts}.items():
        setattr(here, name, value)
    options: list[Any] = [click.Option([name]) for name in TEXT]
    options += [click.Option([n], default=d, type=click.Choice(c)) for n, (d, c) in CHOICES.items()]
    options += [click.Option([name], default=default, type=int) for name, default in NUMBERS.items()]
    options += [click.Option([name], default=default, type=float) for name, default in RATES.items()]
    options += [click.Option([name], is_flag=True) for name in (*SWITCHES, "--classifier")]
    options += [click.Option(["--normalize-targets/--no-normalize-targets"], default=True)]
    commands: Any = made["aam.cli"]
    commands.train = click.Command("train", params=options, callback=partial(train, here))
    predicting: list[Any] = [click.Option([name]) for name in ("--model", "--table", "--output", "--metadata")]
    predicting += [click.Option([name], default=8, type=int) for name in ("--batch-size", "--prediction-passes")]
    predicting += [click.Option([name], is_flag=True) for name in ("--no-sequence-cache", "--output-variance")]
    predicting += [click.Option(["--device"], default="cpu"), click.Option(["--asv-sampling"], default="first")]
    commands.predict = click.Command("predict", params=predicting)
    found: Any = made
    found["aam.cli.utils"].setup_device = torch.device
    found["aam.data.dataset"].ASVDataset, found["aam.data.dataset"].collate_fn = ASVDataset, collate_fn
    found["aam.data.biom_loader"].BIOMLoader = BIOMLoader
    found["aam.models.sequence_predictor"].SequencePredictor = model.SequencePredictor
    found["aam.training.losses"].MultiTaskLoss = _Loss
    return made


class _Loss(example("_sequence_predictor").MultiTaskLoss):  # type: ignore[misc]
    """With the arguments that AAM's has for losses of its own."""

    def __init__(self, target_loss_type: str = "huber", quantiles: Any = None, **options: Any) -> None:
        super().__init__(**options)
