"""Studies on CIFAR-10: arms that differ in a few options, each trained under several seeds (docs/studies.md)."""
