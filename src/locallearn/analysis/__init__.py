"""What can be learned about a network from its activations, gradients and weights: functions of tensors and of any
`nn.Module`, without the harness. `probes` run them during training."""
