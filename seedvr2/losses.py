"""What training minimises. Each function says which equation it is."""

import torch
from torch import Tensor


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Mean Kullback-Leibler divergence of N(mean, exp(log_variance)) from N(0, 1), per element."""
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).mean()


def velocity_loss(predicted: Tensor, target: Tensor, weight: Tensor | float = 1.0) -> Tensor:
    """Mean squared error of one sample's velocity, in fp32.

    Args:
        predicted: Velocity, any shape.
        target: The same shape.
        weight: Broadcast over the squared differences; 1 is the paper's loss.

    Source: flow matching with velocity = noise - latent; SeedVR2 (arXiv 2506.05301), Sec. 3.1.
    """
    return (weight * (predicted.float() - target.float()).square()).mean()


def charbonnier(predicted: Tensor, target: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Smooth absolute error sqrt(difference^2 + epsilon^2), averaged, in fp32."""
    return torch.sqrt((predicted.float() - target.float()).square() + epsilon**2).mean()
