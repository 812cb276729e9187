"""``reghead-aam predict``: predictions in the target's own units from any checkpoint of an attached model."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reghead._optional import import_optional
from reghead.adapters.aam._dataset import LabelReader, check_rows, check_samples
from reghead.adapters.aam._head import TargetHead
from reghead.adapters.aam._labels import ids_of
from reghead.adapters.aam._load import load_predictor
from reghead.adapters.aam._loss import import_aam
from reghead.functional._quantiles import nearest_level


def predict_command() -> Any:
    """The command, with the options of ``aam predict``."""
    import click

    original = import_aam("aam.cli").predict

    def run(**values: Any) -> None:
        try:
            table = predict(**values)
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            raise click.ClickException(str(error)) from error
        click.echo(f"{len(table)} predictions in {values['output']}")

    return click.Command(
        "predict",
        callback=run,
        params=list(original.params),
        help="Predict in the target's own units with a checkpoint that reghead-aam train, or an attached model, wrote.",
    )


def predict(
    *,
    model: str,
    table: str,
    output: str,
    metadata: str | None,
    batch_size: int,
    device: str,
    no_sequence_cache: bool,
    asv_sampling: str,
    prediction_passes: int,
    output_variance: bool,
) -> Any:
    """Write the predictions of every sample of ``table`` to ``output``, and return them."""
    pandas = import_optional("pandas", extra="aam")
    data = import_aam("aam.data.dataset")
    place = import_aam("aam.cli.utils").setup_device(device)
    predictor = load_predictor(model, device=place)
    head = predictor.target_head
    assert isinstance(head, TargetHead)
    frame = None if metadata is None else _read_metadata(pandas, metadata)
    if head.encoder is not None and frame is None:
        raise ValueError(
            f"the model was trained with the columns {', '.join(head.encoder.columns)}; give their values in --metadata"
        )
    # The model fuses its own columns, beside those that the head uses.
    own = dict.fromkeys([*head.host.get("categorical_cardinalities", ()), *head.config.columns])
    columns = head.data.get("columns", list(own))
    _check_labels(head, columns)
    samples = import_aam("aam.data.biom_loader").BIOMLoader().load_table(table)
    counted = {name: head.data[name] for name in ("count_min", "count_max") if name in head.data}
    dataset = data.ASVDataset(
        table=samples,
        metadata=frame,
        max_bp=head.host["max_bp"],
        token_limit=head.host["token_limit"],
        cache_sequences=not no_sequence_cache,
        categorical_encoder=LabelReader(head.encoder, columns) if head.encoder is not None and columns else None,
        normalize_counts=bool(counted),
        **counted,
    )
    collate = partial(data.collate_fn, token_limit=head.host["token_limit"], asv_sampling=asv_sampling)
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size=batch_size, collate_fn=collate)
    ids = {} if frame is None or head.encoder is None else _ids(head, frame)
    if head.encoder is not None:
        check_rows(dataset.sample_ids, ids)
    passes = max(prediction_passes, 1) if asv_sampling == "random" else 1
    runs = [dict(_run(predictor, head, loader, ids, place)) for _ in range(passes)]
    names = list(runs[0])
    values = torch.stack([torch.stack([run[name] for name in names]) for run in runs])
    spread = values.std(dim=0, unbiased=False) if output_variance and passes > 1 else None
    result = pandas.DataFrame({"sample_id": names, **_columns(head, values.mean(dim=0), spread)})
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    result.to_csv(output, sep="\t", index=False)
    return result


def _run(
    predictor: nn.Module, head: TargetHead, loader: Any, ids: dict[str, dict[str, int]], place: torch.device
) -> Iterator[tuple[str, Tensor]]:
    """Sample id and predictions in the target's own units, shape ``(D, Q)``."""
    for batch in loader:
        tokens = batch["tokens"].to(place)
        given = {column: values.to(place) for column, values in batch.get("categorical_ids", {}).items()}
        counts = batch["counts"].to(place) if head.host.get("count_embedding") else None
        with torch.no_grad():
            values = predictor(tokens, counts=counts, categorical_ids=given or None)["target_prediction"].double()
            if head.normalizer is not None:
                known = {
                    column: torch.tensor([ids[sample][column] for sample in batch["sample_ids"]], device=place)
                    for column in head.normalizer.cardinalities
                }
                values = head.normalizer.inverse(values, known, output_dim=-1 if values.ndim == 2 else -2)
        values = values.unsqueeze(-1) if values.ndim == 2 else values
        yield from zip(batch["sample_ids"], values.cpu(), strict=True)


def _columns(head: TargetHead, values: Tensor, spread: Tensor | None) -> dict[str, list[float]]:
    """The columns of the file: of every target its prediction, its levels, and the spread over passes."""
    levels = head.config.quantiles or (0.5,)
    reported: Sequence[Sequence[float]] = head.data.get("levels") or [head.config.quantiles or ()] * head.out_features
    columns = {}
    for i in range(head.out_features):
        # One target is "prediction", as in AAM; several have their names.
        name = "prediction"
        if head.out_features > 1:
            name += f"_{head.outputs[i] if head.outputs else i}"
        point = nearest_level(levels)
        columns[name] = values[:, i, point].tolist()
        columns |= {f"{name}_q{level:g}": values[:, i, levels.index(level)].tolist() for level in reported[i]}
        if spread is not None:
            columns[name.replace("prediction", "prediction_std", 1)] = spread[:, i, point].tolist()
    return columns


def _read_metadata(pandas: Any, path: str) -> Any:
    # As in a table of sequences, an id is text: 007 is not 7.
    frame = pandas.read_csv(path, sep="\t", encoding="utf-8-sig", dtype={"sample_id": str})
    frame.columns = frame.columns.str.strip()
    if "sample_id" not in frame.columns:
        raise ValueError(f"--metadata needs the column 'sample_id', and {path} has {', '.join(frame.columns)}")
    check_samples(frame)
    return frame


def _check_labels(head: TargetHead, columns: Sequence[str]) -> None:
    """Raise unless the checkpoint can read the labels of every column that a prediction needs."""
    scaled = () if head.normalizer is None else head.normalizer.cardinalities
    readable = () if head.encoder is None else head.encoder.columns
    missing = [column for column in (*columns, *scaled) if column not in readable]
    if missing:
        raise ValueError(
            f"the checkpoint has no labels of the column {missing[0]!r}; give attach an encoder= of all columns of "
            "the model and the normalizer, or predict in Python with ids"
        )


def _ids(head: TargetHead, frame: Any) -> dict[str, dict[str, int]]:
    assert head.encoder is not None
    ids = ids_of(head.encoder, frame)
    rows = zip(*(values.tolist() for values in ids.values()), strict=True)
    return {sample: dict(zip(ids, row, strict=True)) for sample, row in zip(frame["sample_id"], rows, strict=True)}
