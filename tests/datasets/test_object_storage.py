"""Data in object storage: the same images and annotations as on disk, and a run that reads only these."""

import json

import numpy as np
import pytest
from mmdet.registry import DATASETS, METRICS
from mmengine.fileio import get_file_backend
from mmengine.registry import init_default_scope

from deit_detr.errors import UserError
from tests.helpers.paths import REPO, TINY_RUN

CONFIG = REPO / 'projects/deit_detr/configs/detr_deit-tiny_1xb8-50e_mini-scannet.py'
KEYS = dict(AWS_ACCESS_KEY_ID='testing', AWS_SECRET_ACCESS_KEY='testing', AWS_DEFAULT_REGION='us-east-1')
ROOT = 's3://rooms/scannet-frames/'


@pytest.fixture(scope='module')
def endpoint(mini_scannet):
    """Return the address of an S3 server on this machine with the converted rooms."""
    import boto3
    from moto.server import ThreadedMotoServer  # half a second, which only this process has to spend

    server = ThreadedMotoServer(ip_address='127.0.0.1', port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client(
        's3', endpoint_url=f'http://{host}:{port}', region_name='us-east-1', aws_access_key_id='testing',
        aws_secret_access_key='testing')
    client.create_bucket(Bucket='rooms')
    files = [*mini_scannet.glob('*.json'), *mini_scannet.glob('train/*/color/*'), *mini_scannet.glob('val/*/color/*')]
    for file in files:
        client.upload_file(str(file), 'rooms', f'scannet-frames/{file.relative_to(mini_scannet)}')
    yield f'http://{host}:{port}'
    server.stop()


def build(root: str, backend_args: dict | None = None):
    init_default_scope('mmdet')
    return DATASETS.build(dict(
        type='ScanNetDataset', data_root=root, ann_file='scannet_objdet_val.json', data_prefix=dict(img='val/'),
        pipeline=[dict(type='LoadImageFromFile', backend_args=backend_args)], backend_args=backend_args,
        test_mode=True))


def test_same_data_as_on_disk(mini_scannet, endpoint):
    backend_args = dict(backend='fsspec', key='testing', secret='testing', endpoint_url=endpoint)
    stored, local = build(ROOT, backend_args), build(f'{mini_scannet}/')
    assert len(stored) == len(local) > 0
    for a, b in zip(stored, local, strict=True):
        np.testing.assert_array_equal(a['img'], b['img'])
        assert a['instances'] == b['instances']
    metric = METRICS.build(dict(
        type='CocoMetric', ann_file=f'{ROOT}scannet_objdet_val.json', backend_args=backend_args))
    assert metric._coco_api.dataset == json.loads((mini_scannet / 'scannet_objdet_val.json').read_text())


@pytest.mark.slow
def test_training_and_evaluation_from_storage(run, tmp_path, endpoint):
    """Only the address of the data changes. Workers are forked from a process that has read from the storage."""
    output = run(
        'python', REPO / 'tools/train.py', CONFIG, '--work-dir', tmp_path / 'run', *TINY_RUN, 'train_cfg.max_epochs=1',
        'train_dataloader.num_workers=1', 'val_dataloader.num_workers=1',
        CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS=1, MINI_SCANNET_ROOT=ROOT, AWS_ENDPOINT_URL=endpoint, **KEYS)
    assert 'Epoch(train) [1][4/4]' in output
    assert 'coco/bbox_mAP: ' in output


def test_says_what_is_wrong(endpoint, monkeypatch):
    for name, value in dict(KEYS, AWS_ENDPOINT_URL=endpoint).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match='s3://rooms/nothing/scannet_objdet_val.json: no such annotation file'):
        build('s3://rooms/nothing/')
    with pytest.raises(FileNotFoundError):
        get_file_backend('s3://rooms/nothing').get('s3://rooms/nothing')
    with pytest.raises(UserError, match='gs://rooms/file: .*gcsfs.*requirements/optional.txt'):
        get_file_backend('gs://rooms/file').get('gs://rooms/file')
    monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')  # otherwise it waits between attempts
    nobody = get_file_backend(backend_args=dict(backend='fsspec', endpoint_url='http://127.0.0.1:1'))
    with pytest.raises(UserError, match='s3://rooms/file: .*endpoint come from backend_args'):
        nobody.get('s3://rooms/file')
