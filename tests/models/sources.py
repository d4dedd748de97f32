"""The same rows as every source of batches that Keras takes."""

import keras
import numpy as np

BATCH_SIZE = 2


class Rows(keras.utils.PyDataset):
    def __init__(self, *columns):
        super().__init__()
        self.columns = columns

    def __len__(self):
        return -(-len(self.columns[-1]) // BATCH_SIZE)

    def __getitem__(self, index):
        rows = slice(BATCH_SIZE * index, BATCH_SIZE * (index + 1))
        return tuple(keras.tree.map_structure(lambda array: array[rows], c) for c in self.columns)


def generator(*columns):
    rows = Rows(*columns)
    return (rows[i] for i in range(len(rows)))


def tf_data(*columns):
    import tensorflow as tf

    return tf.data.Dataset.from_tensor_slices(columns).batch(BATCH_SIZE)


def data_loader(*columns):
    import torch

    class Examples(torch.utils.data.Dataset):
        def __len__(self):
            return len(columns[-1])

        def __getitem__(self, index):
            return keras.tree.map_structure(lambda array: np.asarray(array[index]), columns)

    return torch.utils.data.DataLoader(Examples(), batch_size=BATCH_SIZE)


def grain_data(*columns):
    import grain

    rows = Rows(*columns)
    return grain.MapDataset.range(len(rows)).map(lambda index: rows[int(index)])


SOURCES = {
    "generator": generator,
    "PyDataset": Rows,
    "tf.data": tf_data,
    "DataLoader": data_loader,
    "grain": grain_data,
}
