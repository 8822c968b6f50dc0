"""Optimizers, the learning rate of each update, the fp16 loss scale."""
