"""Training images: folders on disk, arrays in memory, batches, augmentation."""
