"""Predictions for images, folders and videos with a checkpoint of mmdet or mmseg."""
