"""Checks of annotations, images and label maps before and while they are read."""
