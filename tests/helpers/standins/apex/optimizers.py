"""FusedAdam and FusedLAMB: signatures, where state lives, and what is refused, as with the package itself."""

import torch


class _Fused(torch.optim.Optimizer):
    def zero_grad(self):  # takes no set_to_none
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None

    def _begin(self, group):
        """Count the step of a group; return its bias corrections."""
        assert group["params"][0].dtype == torch.float32  # apex looks at the first one: a group may not be empty
        group["step"] = group.get("step", 0) + 1
        return [1 - beta ** group["step"] for beta in group["betas"]]

    def _direction(self, group, p, grad, corrections):
        """Update the moments of p; return AdamW's step for a learning rate of 1."""
        state = self.state[p]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        beta1, beta2 = group["betas"]
        state["exp_avg"].mul_(beta1).add_(grad, alpha=1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        scale = (state["exp_avg_sq"] / corrections[1]).sqrt() + group["eps"]
        return state["exp_avg"] / corrections[0] / scale + group["weight_decay"] * p


def _with_gradients(group):
    return [p for p in group["params"] if p.grad is not None]


class FusedAdam(_Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-8,
        adam_w_mode=True,
        weight_decay=0.0,
        amsgrad=False,
        set_grad_none=True,
    ):
        assert bias_correction
        assert adam_w_mode
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            corrections = self._begin(group)
            for p in _with_gradients(group):
                p -= group["lr"] * self._direction(group, p, p.grad, corrections)


class FusedLAMB(_Fused):
    def __init__(
        self,
        params,
        lr=1e-3,
        bias_correction=True,
        betas=(0.9, 0.999),
        eps=1e-6,
        weight_decay=0.01,
        amsgrad=False,
        adam_w_mode=True,
        grad_averaging=True,
        set_grad_none=True,
        max_grad_norm=1.0,
        use_nvlamb=False,
    ):
        assert bias_correction
        assert adam_w_mode
        numbers = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, numbers)

    @torch.no_grad()
    def step(self, closure=None):
        norm = torch.stack([p.grad.norm() for group in self.param_groups for p in _with_gradients(group)]).norm()
        too_long = norm / self.defaults["max_grad_norm"] if norm > self.defaults["max_grad_norm"] else 1.0
        for group in self.param_groups:
            corrections = self._begin(group)
            for p in _with_gradients(group):
                step = self._direction(group, p, p.grad / too_long, corrections)
                trust = p.norm() / step.norm() if group["weight_decay"] and p.norm() and step.norm() else 1.0
                p -= group["lr"] * trust * step
