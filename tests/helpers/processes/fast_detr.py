"""Plain and fast DETR in two processes with different numbers of boxes (run by test_fast_detr.py).

The two are forked from one that has imported everything; the status is 1 if they differ in one of them.
"""


import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from tests.models.test_fast_detr import assert_equal_training, build, images


def compare(rank: int, port: int) -> None:
    torch.distributed.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    options = {'model.bbox_head.sync_cls_avg_factor': True}
    assert_equal_training(build('detr', options), build('detr-fast', options), images((64, 96, 1 + 6 * rank)))
    torch.distributed.destroy_process_group()


if __name__ == '__main__':
    torch.multiprocessing.start_processes(compare, (get_free_port(),), 2, start_method='fork')
