"""Adam that does not load torch's compiler: it takes seconds of a command, and compiles nothing."""

from inspect import unwrap

import torch


class Adam(torch.optim.Adam):
    """torch's own, without the wrappers that keep `torch.compile` away from its methods."""

    add_param_group = unwrap(torch.optim.Adam.add_param_group)
    zero_grad = unwrap(torch.optim.Adam.zero_grad)
    state_dict = unwrap(torch.optim.Adam.state_dict)
    load_state_dict = unwrap(torch.optim.Adam.load_state_dict)
    step = torch.no_grad()(unwrap(torch.optim.Adam.step))
