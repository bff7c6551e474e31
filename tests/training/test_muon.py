import torch
import torch.nn as nn

from difftilt.conditions import unconditional
from difftilt.processes.masked import MaskedPolicy
from difftilt.training.muon import Muon, orthogonal
from difftilt.training.pretrain import explain


def test_the_step_keeps_directions_and_evens_out_their_lengths():
    torch.manual_seed(0)
    for shape in ((6, 20), (20, 6), (8, 8)):
        u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
        s = torch.linspace(1, 5, len(s))
        found = u.T @ orthogonal(u @ s.diag() @ v) @ v.T
        assert (found - found.diagonal().diag()).abs().max() < 1e-4
        assert found.diagonal().min() > 0.6 and found.diagonal().max() < 1.3


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3)])
        self.out = nn.Linear(3, 2)

    def forward(self, x, t, cond):
        return self.out(self.layers[0](x))


def test_matrices_of_layers_take_muons_step_and_all_else_adams():
    net = Net()
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = Muon(net, 0.1, 1e-3)
    policy = MaskedPolicy(net, 2, 4)
    seen = []
    loss = policy.loss
    policy.loss = lambda x_0, t, cond: (seen.append(t), loss(x_0, t, cond))[1]
    data = torch.tensor([[0, 0, 1, 1]]).repeat(9, 1)
    list(explain(policy, data, unconditional(9), optimizer, steps=3, batch=4, even=True))
    assert [sorted(t.tolist()) for t in seen] == [[1, 2, 3, 4]] * 3
    moved = {name: (p - before[name]).abs().max().item() for name, p in net.named_parameters()}
    assert moved["layers.0.weight"] > 0.05
    assert all(0 < distance < 5e-3 for name, distance in moved.items() if name != "layers.0.weight")
