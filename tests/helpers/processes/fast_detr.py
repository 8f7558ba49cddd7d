"""Plain and fast DETR in two processes with different numbers of boxes (run by models/test_fast_detr.py).

The two are forked from one that has imported everything; the status is 1 if they differ in one of them.
"""

import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from tests.helpers.small_models import assert_equal_training, build_small, noise


def compare(rank: int, port: int) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    twins = (
        build_small(f'{name}_deit-tiny_8xb1-150e_scannet', {'model.bbox_head.sync_cls_avg_factor': True})
        for name in ('detr', 'detr-fast'))
    assert_equal_training(*twins, noise((64, 96, 1 + 6 * rank)))
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    torch.multiprocessing.start_processes(compare, (get_free_port(),), 2, start_method='fork')
