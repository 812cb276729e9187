"""Statistics of every process of a group, merged in the order of their ranks."""

import torch
import torch.distributed as dist
from torch import Tensor

from reghead.categories import GroupStatistics


def gather_statistics(
    statistics: GroupStatistics, fingerprint: int, device: torch.device, group: "dist.ProcessGroup | None"
) -> GroupStatistics:
    """Merge the statistics of all ranks; each rank computes the same merge, so the results are identical.

    Args:
        statistics: This rank's, empty with 0 target columns if it has seen no rows.
        fingerprint: A number that must agree between ranks.
        device: Where the tensors travel: one that the group's backend serves.
        group: The process group, the default one if None.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("all_reduce needs a process group; call torch.distributed.init_process_group first")
    rows, columns = statistics.mean.shape
    headers = _all_gather(torch.tensor([rows, columns, fingerprint], device=device), group).tolist()
    fitted = [header for header in headers if header[0]]
    # Every rank sees the same headers, so every rank raises and none is left waiting.
    if len({f for _, _, f in headers}) > 1:
        raise ValueError("all_reduce needs the same CategoryNormalizer on every rank, but their options differ")
    if len({d for _, d, _ in fitted}) > 1:
        raise ValueError(f"all_reduce needs one number of target columns, got {[d for _, d, _ in headers]} by rank")
    if not fitted:
        raise ValueError("all_reduce needs at least one fitted rank, but no rank has seen a row")
    height, width = max(k for k, _, _ in fitted), fitted[0][1]
    keys = torch.zeros(height, dtype=torch.int64, device=device)
    moments = torch.zeros(4, height, width, dtype=torch.float64, device=device)
    if rows:
        keys[:rows] = statistics.keys
        moments[:, :rows] = torch.stack(statistics.parts[1:])
    all_keys, all_moments = _all_gather(keys, group).cpu(), _all_gather(moments, group).cpu()
    merged = GroupStatistics.empty(width)
    for (k, _, _), rank_keys, rank_moments in zip(headers, all_keys, all_moments, strict=True):
        merged = merged.merge(GroupStatistics(rank_keys[:k], *rank_moments[:, :k]))
    return merged


def _all_gather(tensor: Tensor, group: "dist.ProcessGroup | None") -> Tensor:
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, tensor, group=group)
    return torch.stack(gathered)
