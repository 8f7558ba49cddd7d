# COCO in the 2.x schema, as a base file of DETR-R50
dataset_type = 'CocoDataset'
data_root = 'data/coco/'
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=2,
    **{
        split: dict(
            type=dataset_type,
            ann_file=f'{data_root}annotations/instances_{year}.json',
            img_prefix=f'{data_root}{year}/')
        for split, year in (('train', 'train2017'), ('val', 'val2017'), ('test', 'val2017'))
    })
evaluation = dict(interval=1, metric='bbox')
