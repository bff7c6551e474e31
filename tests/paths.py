"""What is measured along given chains."""

from difftilt.policy import Policy, Trajectory, decide
from difftilt.shapes import PerStep


def path_kl(policy: Policy, reference: Policy, path: Trajectory) -> PerStep:
    """KL(policy || reference) in nats of every decision, in closed form at the states of given chains."""
    rows = path.transitions()
    return decide(policy, rows).kl(decide(reference, rows)).view_as(path.log_prob)
