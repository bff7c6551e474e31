"""What samples of the pretrained model tell of the policy that is asked for, the tilt by exp(r / alpha)."""

import math

from difftilt.answers import variance
from difftilt.evaluation.evaluate import ScoredSamples
from difftilt.training.alpha import FEWEST_REWARDS, expected_tilt, starting_alpha


def expectations(seen: ScoredSamples) -> dict[str, float]:
    """The total variance of the pretrained samples, and where the tilt lies, as far as they tell.

    The KL of the tilt falls as alpha grows. Where too few samples count at this alpha, its KL is at least
    that at the smallest alpha at which enough do.

    Returns:
        `variance`; `least_kl_nats`, what the KL is at least; and if enough samples count at this alpha, the
        variance under the tilt and `kl_nats`, which is the same number as the least. Errors end in `_se`.
    """
    valid = seen.reward.isfinite()
    reward, sample = seen.reward[valid], seen.sample[valid]
    if len(reward) < FEWEST_REWARDS:
        return {}
    tilt, weight = expected_tilt(reward, seen.alpha), (reward / seen.alpha).softmax(0)
    found = {"variance": variance(sample).item()}
    if tilt.known:
        found |= {"kl_nats": tilt.kl_nats, "kl_nats_se": tilt.kl_nats_se}
        found["tilted_variance"] = variance(sample, weight).item()
    elif (reward != reward[0]).any():
        tilt = starting_alpha(reward, math.log(len(reward)))
    return found | {"least_kl_nats": tilt.kl_nats, "least_kl_nats_se": tilt.kl_nats_se}
