"""The loss over two processes: its speed against one, and the bytes that it hands to torch.distributed."""
