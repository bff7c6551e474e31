"""Numbers of whole chains."""

from torch import Tensor

from difftilt.policy import Policy, Trajectory, decide


def path_kl(policy: Policy, reference: Policy, path: Trajectory) -> Tensor:
    """KL(policy || reference) in nats of every decision, in closed form at the states of given chains."""
    rows = path.transitions()
    return decide(policy, rows).kl(decide(reference, rows)).view_as(path.log_prob)
