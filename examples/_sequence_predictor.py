"""A small model of sequences in the shape of AAM's SequencePredictor, its loss and its Trainer, to try the adapter on.

It is written from what AAM documents of itself: the names that others rely on, and the order in which things happen.
The layers are small ones of torch, there is no data format and no command, and it learns in seconds. Where the real AAM
is installed the example uses that.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Encoder(nn.Module):
    """Transformer layers with a mask, and what they were built with."""

    def __init__(self, width: int, layers: int, heads: int, inner: int | None, dropout: float, activation: str) -> None:
        super().__init__()
        kind = {"gelu": nn.GELU, "relu": nn.ReLU}[activation]
        inner = inner or 4 * width
        layer = nn.TransformerEncoderLayer(width, heads, inner, dropout, kind(), batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.gradient_checkpointing, self.attn_implementation = False, "sdpa"

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Encode ``x`` of shape (B, S, D)."""
        return self.encoder(x, src_key_padding_mask=mask == 0)


class Pooling(nn.Module):
    """Attention over the sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Pool ``x`` of shape (B, S, D) to (B, D)."""
        scores = self.query(x).squeeze(-1).masked_fill(mask == 0, -torch.inf)
        return torch.einsum("bs,bsd->bd", scores.softmax(dim=-1), x)


class ASVEncoder(nn.Module):
    """One embedding for each sequence."""

    def __init__(self, width: int, vocab_size: int, max_bp: int, encoder: Encoder) -> None:
        super().__init__()
        self.vocab_size, self.max_bp = vocab_size, max_bp
        self.asv_chunk_size, self.mask_ratio, self.mask_strategy = None, 0.0, "random"
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.transformer, self.attention_pooling = encoder, Pooling(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Embed tokens of shape (B, S, L)."""
        flat = tokens.flatten(0, 1)
        mask = (flat > 0).long()
        mask[:, 0] = 1  # padding is a sequence of zeros; its embedding is masked later
        pooled = self.attention_pooling(self.transformer(self.token_embedding(flat), mask), mask)
        return pooled.unflatten(0, tokens.shape[:2])


class SampleEncoder(nn.Module):
    """Embeddings of the sequences of a sample, in each other's light."""

    def __init__(self, token_limit: int, asv_encoder: ASVEncoder, encoder: Encoder) -> None:
        super().__init__()
        self.token_limit, self.asv_encoder, self.sample_transformer = token_limit, asv_encoder, encoder


class SequenceEncoder(nn.Module):
    """The base model."""

    def __init__(self, width: int, encoder_type: str, sample_encoder: SampleEncoder, encoder: Encoder) -> None:
        super().__init__()
        self.embedding_dim, self.encoder_type, self.base_output_dim = width, encoder_type, width
        self.predict_nucleotides, self.count_embedding = False, False
        self.vocab_size = sample_encoder.asv_encoder.vocab_size
        self.sample_encoder, self.encoder_transformer = sample_encoder, encoder
        self.attention_pooling = Pooling(width)

    def forward(self, tokens: Tensor, **_: Any) -> dict[str, Tensor]:
        """Embeddings of samples and of their sequences."""
        mask = (tokens.sum(-1) > 0).long()
        x = self.sample_encoder.sample_transformer(self.sample_encoder.asv_encoder(tokens), mask)
        return {
            "sample_embeddings": x,
            "embeddings": self.attention_pooling(self.encoder_transformer(x, mask), mask),
        }


class CategoricalEmbedder(nn.Module):
    """A table for each column, where row 0 is the unknown."""

    def __init__(self, cardinalities: dict[str, int], width: int | dict[str, int], dropout: float) -> None:
        super().__init__()
        self.column_names = sorted(cardinalities)
        widths = width if isinstance(width, dict) else dict.fromkeys(cardinalities, width)
        self.embeddings = nn.ModuleDict(
            {c: nn.Embedding(cardinalities[c], widths[c], padding_idx=0) for c in self.column_names}
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: dict[str, Tensor]) -> Tensor:
        """Embeddings of all columns side by side; a missing one is unknown."""
        unknown = torch.zeros_like(next(iter(ids.values())))
        return self.dropout(torch.cat([self.embeddings[c](ids.get(c, unknown)) for c in self.column_names], dim=-1))


class ResidualRegressionHead(nn.Module):
    """A linear map beside hidden layers."""

    def __init__(self, mlp: nn.Sequential, skip: nn.Linear) -> None:
        super().__init__()
        self.skip, self.mlp = skip, mlp

    def forward(self, x: Tensor) -> Tensor:
        """Both, added."""
        return self.skip(x) + self.mlp(x)


class SequencePredictor(nn.Module):
    """Predicts a sample's targets, and the counts of its sequences."""

    def __init__(
        self,
        encoder_type: str = "unifrac",
        vocab_size: int = 7,
        embedding_dim: int = 16,
        max_bp: int = 12,
        token_limit: int = 8,
        out_dim: int = 1,
        is_classifier: bool = False,
        freeze_base: bool = False,
        target_layer_norm: bool = True,
        bounded_targets: bool = False,
        learnable_output_scale: bool = False,
        output_activation: str = "none",
        categorical_cardinalities: dict[str, int] | None = None,
        categorical_embed_dim: int | dict[str, int] = 16,
        categorical_fusion: str = "concat",
        categorical_dropout: float = 0.1,
        regressor_hidden_dims: list[int] | None = None,
        regressor_dropout: float = 0.0,
        residual_regression_head: bool = False,
        conditional_scaling_columns: list[str] | None = None,
        num_quantiles: int | None = None,
        count_prediction: bool = True,
        **sizes: Any,
    ) -> None:
        super().__init__()
        width, self.embedding_dim = embedding_dim, embedding_dim
        encoders = {name: _encoder(width, name, sizes) for name in ("asv", "sample", "encoder", "count", "target")}
        asv = ASVEncoder(width, vocab_size, max_bp, encoders["asv"])
        sample = SampleEncoder(token_limit, asv, encoders["sample"])
        self.base_model = SequenceEncoder(width, encoder_type, sample, encoders["encoder"])
        self.base_model.requires_grad_(not freeze_base)
        self.count_embedding, self.count_embedding_method = False, "add"
        self.cross_attn_heads, self.perceiver_num_latents, self.perceiver_num_layers = 8, 64, 2
        self.out_dim, self.is_classifier, self.num_quantiles = out_dim, is_classifier, num_quantiles
        self.count_prediction_enabled = count_prediction
        self.count_encoder = encoders["count"] if count_prediction else None
        self.count_head = nn.Linear(width, 1) if count_prediction else None
        self.target_encoder, self.target_pooling = encoders["target"], Pooling(width)
        self.target_layer_norm_enabled = target_layer_norm
        self.target_norm = nn.LayerNorm(width) if target_layer_norm else None
        self.bounded_targets, self.output_activation = bounded_targets, output_activation
        self.learnable_output_scale = learnable_output_scale
        self.regressor_hidden_dims, self.regressor_dropout = regressor_hidden_dims, regressor_dropout
        outputs = out_dim * (num_quantiles or 1)
        self.target_head = _head(
            width, regressor_hidden_dims or [], outputs, regressor_dropout, residual_regression_head
        )
        self.output_scale = nn.Parameter(torch.ones(out_dim)) if learnable_output_scale else None
        self.output_bias = nn.Parameter(torch.zeros(out_dim)) if learnable_output_scale else None
        self.categorical_fusion, self.categorical_embed_dim = categorical_fusion, categorical_embed_dim
        self.categorical_embedder = self.categorical_projection = None
        self.gmu = self.cross_attn_fusion = self.perceiver_fusion = None
        if categorical_cardinalities:
            embedder = CategoricalEmbedder(categorical_cardinalities, categorical_embed_dim, categorical_dropout)
            total = sum(table.embedding_dim for table in embedder.embeddings.values())
            self.categorical_embedder = embedder
            self.categorical_projection = nn.Linear(total + (width if categorical_fusion == "concat" else 0), width)
        self.conditional_scaling_columns = conditional_scaling_columns
        self.output_scales = self.output_biases = None
        if conditional_scaling_columns:
            tables = {c: nn.Embedding(categorical_cardinalities[c], out_dim) for c in conditional_scaling_columns}
            self.output_scales, self.output_biases = nn.ModuleDict(tables), nn.ModuleDict(copy.deepcopy(tables))
            for column in conditional_scaling_columns:
                nn.init.ones_(self.output_scales[column].weight)
                nn.init.zeros_(self.output_biases[column].weight)
        self._init_weights()

    def _init_weights(self) -> None:
        for part in (self.target_head, self.count_head, self.categorical_projection):
            for module in part.modules() if part is not None else ():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    nn.init.zeros_(module.bias)

    def forward(
        self,
        tokens: Tensor,
        counts: Tensor | None = None,
        categorical_ids: dict[str, Tensor] | None = None,
        return_nucleotides: bool = False,
        return_sample_embeddings: bool = False,
    ) -> dict[str, Tensor]:
        """Predict from tokens of shape (B, S, L)."""
        mask = (tokens.sum(-1) > 0).long()
        base = self.base_model(tokens, counts=counts, return_nucleotides=return_nucleotides)
        x = base["sample_embeddings"]
        result = {}
        if self.count_encoder is not None:
            result["count_prediction"] = torch.sigmoid(self.count_head(self.count_encoder(x, mask)))
        fused = x
        if self.categorical_fusion != "gmu" and self.categorical_embedder is not None and categorical_ids is not None:
            embedded = self.categorical_embedder(categorical_ids).unsqueeze(1).expand(-1, x.shape[1], -1)
            if self.categorical_fusion == "concat":
                fused = self.categorical_projection(torch.cat([x, embedded], dim=-1))
            else:
                fused = x + self.categorical_projection(embedded)
        pooled = self.target_pooling(self.target_encoder(fused, mask), mask)
        if self.target_norm is not None:
            pooled = self.target_norm(pooled)
        out = self.target_head(pooled)
        if self.num_quantiles is not None:
            out = out.view(out.shape[0], self.out_dim, self.num_quantiles)
        else:
            out = self._shape(self._apply_conditional_scaling(out, categorical_ids))
        if return_sample_embeddings:
            result["base_embeddings"] = x
        return {"target_prediction": out, **result, "embeddings": base["embeddings"]}

    def _apply_conditional_scaling(self, out: Tensor, ids: dict[str, Tensor] | None) -> Tensor:
        for column in self.conditional_scaling_columns or ():
            if self.output_scales is not None and ids is not None and column in ids:
                out = out * self.output_scales[column](ids[column]) + self.output_biases[column](ids[column])
        return out

    def _shape(self, out: Tensor) -> Tensor:
        if self.output_scale is not None:
            out = out * self.output_scale + self.output_bias
        if self.is_classifier:
            return out.log_softmax(-1)
        if self.bounded_targets:
            return out.sigmoid()
        return {"none": lambda x: x, "relu": F.relu, "softplus": F.softplus, "exp": torch.exp}[self.output_activation](
            out
        )


def _encoder(width: int, name: str, sizes: dict[str, Any]) -> Encoder:
    return Encoder(
        width,
        sizes.get(f"{name}_num_layers", 1),
        sizes.get(f"{name}_num_heads", 2),
        sizes.get(f"{name}_intermediate_size"),
        sizes.get(f"{name}_dropout", 0.1),
        sizes.get(f"{name}_activation", "gelu"),
    )


def _head(width: int, hidden: list[int], out: int, dropout: float, residual: bool) -> nn.Module:
    if not hidden:
        return nn.Linear(width, out)
    layers: list[nn.Module] = []
    for before, after in zip([width, *hidden], hidden, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    mlp = nn.Sequential(*layers, nn.Linear(hidden[-1], out))
    return ResidualRegressionHead(mlp, nn.Linear(width, out)) if residual else mlp


class MultiTaskLoss(nn.Module):
    """The loss of targets, counts and distances, and their weighted total."""

    def __init__(
        self,
        penalty: float = 1.0,
        nuc_penalty: float = 1.0,
        target_penalty: float = 1.0,
        count_penalty: float = 1.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.penalty, self.nuc_penalty = penalty, nuc_penalty
        self.target_penalty, self.count_penalty = target_penalty, count_penalty
        self.register_buffer("class_weights", class_weights)

    def compute_target_loss(
        self,
        target_pred: Tensor,
        target_true: Tensor,
        is_classifier: bool = False,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Negative log-likelihood for classes, Huber for numbers."""
        if is_classifier:
            return F.nll_loss(target_pred, target_true, weight=self.class_weights)
        rows = F.smooth_l1_loss(target_pred, target_true, reduction="none").mean(-1)
        return (rows if sample_weights is None else rows * sample_weights).mean()

    def forward(
        self,
        outputs: dict[str, Tensor],
        targets: dict[str, Tensor],
        is_classifier: bool = False,
        encoder_type: str = "unifrac",
        gather_for_distributed: bool = False,
        sample_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All losses by name."""
        zero = next(iter(outputs.values())).sum() * 0.0
        losses = dict.fromkeys(("target_loss", "count_loss", "unifrac_loss", "nuc_loss"), zero)
        if "target" in targets:
            losses["target_loss"] = self.compute_target_loss(
                outputs["target_prediction"], targets["target"], is_classifier, sample_weights
            )
        if "counts" in targets and "count_prediction" in outputs:
            losses["count_loss"] = F.mse_loss(outputs["count_prediction"], targets["counts"])
        total = losses["target_loss"] * self.target_penalty + losses["count_loss"] * self.count_penalty
        return {**losses, "total_loss": total + losses["unifrac_loss"] * self.penalty}
