"""The CIFAR-10 suite: data, architectures, training and trained models."""
