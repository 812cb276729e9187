"""The Trainer of ``_sequence_predictor``, in the shape of AAM's."""

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

CATEGORICAL = ("categorical_embedder", "categorical_projection", "gmu", "output_scales", "cross_attn_fusion")


def create_optimizer(model: nn.Module, lr: float = 1e-3, categorical_lr: float | None = None) -> torch.optim.Optimizer:
    """AdamW with one rate, or with another for parameters that are named as those of categories."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if categorical_lr is None:
        return torch.optim.AdamW(parameters.values(), lr=lr)
    fast = {n for n in parameters if any(n.startswith(word) or f".{word}" in n for word in CATEGORICAL)}
    groups = [
        {"params": [p for n, p in parameters.items() if n not in fast], "lr": lr},
        {"params": [parameters[n] for n in parameters if n in fast], "lr": categorical_lr},
    ]
    return torch.optim.AdamW(groups, lr=lr)


class Evaluator:
    """Scores a model on batches."""

    def __init__(self, model: Any, loss_fn: nn.Module, device: torch.device, target_normalization_params: Any) -> None:
        self.model, self.loss_fn, self.device = model, loss_fn, device
        self.target_normalization_params = target_normalization_params

    def _get_encoder_type(self) -> str:
        return self.model.base_model.encoder_type if hasattr(self.model, "base_model") else "unifrac"

    def _get_is_classifier(self) -> bool:
        return bool(getattr(self.model, "is_classifier", False))

    def _extract_median_quantile(self, predictions: Tensor) -> Tensor:
        quantiles = getattr(self.model, "num_quantiles", None)
        return predictions if quantiles is None or predictions.ndim != 3 else predictions[:, :, quantiles // 2]

    def _denormalize_targets(self, values: Tensor, categorical_ids: dict[str, Tensor] | None = None) -> Tensor:
        return values

    def _prepare_batch(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor] | None]:
        names = {"counts": "counts", "y_target": "target", "tokens": "tokens"}
        targets = {name: batch[key].to(self.device) for key, name in names.items() if key in batch}
        ids = batch.get("categorical_ids")
        return targets["tokens"], targets, None if ids is None else {c: v.to(self.device) for c, v in ids.items()}

    def validate_epoch(
        self,
        dataloader: Any,
        compute_metrics: bool = True,
        epoch: int = 0,
        num_epochs: int = 1,
        return_predictions: bool = False,
        collect_all_predictions: bool = False,
        val_prediction_passes: int = 1,
    ) -> Any:
        """Average losses and scores; also predictions where asked for."""
        self.model.eval()
        sums: dict[str, float] = {}
        samples, predictions, actuals = [], [], []
        classifier, batches = self._get_is_classifier(), 0
        for batch in dataloader:
            tokens, targets, ids = self._prepare_batch(batch)
            options = {} if ids is None or not hasattr(self.model, "categorical_embedder") else {"categorical_ids": ids}
            with torch.no_grad():
                outputs = self.model(tokens, return_nucleotides=False, **options)
                losses = self.loss_fn(outputs, targets, is_classifier=classifier, encoder_type=self._get_encoder_type())
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            batches += 1
            point = self._extract_median_quantile(outputs["target_prediction"])
            predictions.append(self._denormalize_targets(point, categorical_ids=ids))
            actuals.append(self._denormalize_targets(targets["target"], categorical_ids=ids))
            samples += batch.get("sample_ids", [])
        scores = {name: value / batches for name, value in sums.items()}
        predicted, actual = torch.cat(predictions), torch.cat(actuals)
        if compute_metrics and not classifier:
            error, spread = predicted - actual, (actual - actual.mean()).square().sum()
            scores |= {"mae": float(error.abs().mean()), "r2": float(1.0 - error.square().sum() / spread)}
        full = {"sample_ids": samples, "predictions": predicted, "actuals": actual}
        if collect_all_predictions:
            return scores, {"target": predicted}, {"target": actual}, full
        return (scores, {"target": predicted}, {"target": actual}) if return_predictions else scores


class Trainer:
    """Trains a model, keeps its best checkpoint, and writes what it predicts of the validation samples."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        device: str | torch.device = "cpu",
        target_normalization_params: dict[str, Any] | None = None,
        writer: Any = None,
    ) -> None:
        self.model, self.loss_fn, self.device = model.to(device), loss_fn, torch.device(device)
        self.optimizer = optimizer or create_optimizer(model)
        self.target_normalization_params, self.writer = target_normalization_params, writer
        self.evaluator = Evaluator(self.model, loss_fn, self.device, target_normalization_params)

    def _get_encoder_type(self) -> str:
        return self.evaluator._get_encoder_type()

    def _get_is_classifier(self) -> bool:
        return bool(getattr(self.model, "is_classifier", False))

    def _prepare_batch(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor], Any, Tensor | None]:
        tokens, targets, ids = Evaluator._prepare_batch(self.evaluator, batch)
        return tokens, targets, ids, batch.get("sample_weights")

    def train_epoch(self, dataloader: Any) -> dict[str, float]:
        """One pass; the average of every loss."""
        self.model.train()
        sums: dict[str, float] = {}
        batches = 0
        for batch in dataloader:
            tokens, targets, ids, weights = self._prepare_batch(batch)
            inner = getattr(self.model, "module", self.model)
            options = {} if ids is None or inner.categorical_embedder is None else {"categorical_ids": ids}
            outputs = self.model(tokens, return_nucleotides=False, **options)
            losses = self.loss_fn(outputs, targets, is_classifier=self._get_is_classifier(), sample_weights=weights)
            self.optimizer.zero_grad()
            losses["total_loss"].backward()
            self.optimizer.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + float(value.detach())
            batches += 1
        return {name: value / batches for name, value in sums.items()}

    def validate_epoch(self, dataloader: Any, **options: Any) -> Any:
        """Scores of the Evaluator."""
        return self.evaluator.validate_epoch(dataloader, **options)

    def train(self, train_loader: Any, val_loader: Any, num_epochs: int, checkpoint_dir: str) -> dict[str, list[float]]:
        """Train; the best model by validation loss is ``best_model.pt`` in ``checkpoint_dir``."""
        Path(checkpoint_dir).mkdir(parents=True, exist_ok=True)
        history: dict[str, list[float]] = {"train_loss": [], "val_loss": []}
        best = float("inf")
        for epoch in range(num_epochs):
            losses = self.train_epoch(train_loader)
            scores, *_, full = self.validate_epoch(val_loader, collect_all_predictions=True, epoch=epoch)
            history["train_loss"].append(losses["total_loss"])
            history["val_loss"].append(scores["total_loss"])
            if scores["total_loss"] < best:
                best = scores["total_loss"]
                self.save_checkpoint(f"{checkpoint_dir}/best_model.pt", epoch=epoch, best_val_loss=best)
                self._save_val_predictions(full, checkpoint_dir)
            if self.writer is not None:
                self._log_to_tensorboard(epoch, losses, scores)
        return history

    def save_checkpoint(self, filepath: str, epoch: int, best_val_loss: float, config: Any = None) -> None:
        """Write weights and state; ``config`` is empty for the best model."""
        state = {"model_state_dict": self.model.state_dict(), "optimizer_state_dict": self.optimizer.state_dict()}
        torch.save({**state, "epoch": epoch, "best_val_loss": best_val_loss, "config": config or {}}, filepath)

    def load_checkpoint(self, filepath: str, load_optimizer: bool = True) -> dict[str, Any]:
        """Read what :meth:`save_checkpoint` wrote."""
        checkpoint = torch.load(filepath, weights_only=True)
        self.model.load_state_dict(checkpoint["model_state_dict"])
        if load_optimizer:
            self.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
        return checkpoint

    def _save_val_predictions(self, full_predictions: dict[str, Any], checkpoint_dir: str) -> None:
        columns = [full_predictions[name].squeeze(-1).tolist() for name in ("predictions", "actuals")]
        with open(Path(checkpoint_dir).parent / "val_predictions.tsv", "w", newline="") as file:
            rows = csv.writer(file, delimiter="\t")
            rows.writerow(["sample_id", "prediction", "actual"])
            rows.writerows(zip(full_predictions["sample_ids"], *columns, strict=True))

    def _log_to_tensorboard(self, epoch: int, train_losses: dict[str, float], val_results: Any = None) -> None:
        for name, value in train_losses.items():
            self.writer.add_scalar(f"train/{name}", value, epoch)
