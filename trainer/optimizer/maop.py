"""Momentum-Anchored Orthogonal Projection (MAOP): AdamW whose gradients never oppose its momentum."""

import re
import warnings
from collections.abc import Iterator
from difflib import get_close_matches
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


GRANULARITIES = ("tensor", "layer", "global")
SECOND_MOMENTS = ("projected", "raw")
MIN_SQUARED_NORM = 1e-12
SLICE_NUMEL = 2**20

# "model.layers.3" of "model.layers.3.mlp.shared_experts.global.up_proj.weight"
_LAYER_NAME = re.compile(r"(?:.*?\.)?\d+(?=\.)")

# Keys of a parameter group that describe the parameters rather than the progress of the run.
_STRUCTURE = ("name", "maop", "maop_granularity", "maop_second_moment", "param_names")
_FLAGS = ("maop", "maop_enabled")
_CHOICES = {"maop_granularity": GRANULARITIES, "maop_second_moment": SECOND_MOMENTS}


class MAOPAdamW(torch.optim.AdamW):
    r"""
    AdamW that takes out of a gradient what opposes the momentum, before the update (Rosetta, section 3.3 and
    Appendix A, equations 3 and 4). With \\(m\\) the `exp_avg` that the previous step left,

    $$g \leftarrow g - \frac{g^\top m}{\lVert m\rVert^2}\, m \quad\text{if } g^\top m < 0
      \text{ and } \lVert m\rVert^2 \ge 10^{-12}.$$

    It applies to the parameter groups that carry `maop=True`; a group's `maop_enabled` (default `True`) turns it off
    and on between steps. It changes `.grad` in place, keeps no copy of a gradient or a momentum, never waits for the
    device, and on sharded gradients (`DTensor`) needs one all-reduce of scalars per sharded mesh dimension. Where no
    group, nor `maop`, says whether it applies, it warns that it is AdamW.

    Args:
        params: As for [`torch.optim.AdamW`]: parameters, named parameters or parameter groups.
        maop (`bool`, *optional*): Whether it applies to the groups that do not say so themselves; by default not.
        maop_granularity (`str`, defaults to `"tensor"`): What is projected as one vector: each `"tensor"`; the tensors
            of a `"layer"`, that is, whose names agree up to the first number (needs named parameters); or all of them
            (`"global"`). A group may have its own.
        maop_second_moment (`str`, defaults to `"projected"`): Which gradient enters `exp_avg_sq`: the `"projected"`
            one, as in the paper, or the `"raw"` one, while `exp_avg` gets the projected one all the same. A second
            moment that lacks what is taken out lets Adam step the faster along it ("Hidden Failure Modes of Gradient
            Modification under Adam", arXiv 2604.22407). With `"raw"`, `.grad` is left as it is. A group may have its
            own.
        kwargs: As for [`torch.optim.AdamW`].

    Raises:
        ValueError: for an unknown granularity, a flag that is no bool, a key of a group that looks like a mistyped
            flag, and in a MAOP group for `maximize` and for `"layer"` without names.

    Example:

    ```python
    optimizer = MAOPAdamW([{"params": shared, "maop": True}, {"params": rest}], lr=1e-4)
    ```
    """

    def __init__(
        self,
        params,
        *args,
        maop: bool | None = None,
        maop_granularity: str = "tensor",
        maop_second_moment: str = "projected",
        **kwargs,
    ):
        own = {
            "maop": False if maop is None else maop,
            "maop_granularity": maop_granularity,
            "maop_second_moment": maop_second_moment,
        }
        _check_values(own)
        super().__init__(params, *args, **kwargs)
        self._figures = None
        nobody_says = maop is None and not any("maop" in group for group in self.param_groups)
        self.defaults.update(own)
        for group in self.param_groups:
            group.setdefault("maop", own["maop"])
            self._check(group)
        if nobody_says:
            warnings.warn(
                "No parameter group says `maop`: MAOPAdamW is AdamW. Give the groups to project `'maop': True`, or "
                "all of them `maop=True`; `maop=False` is AdamW without this warning.",
                stacklevel=2,
            )

    def add_param_group(self, param_group):
        """As torch's, with the errors of the constructor; a group with one is not added."""
        super().add_param_group(param_group)
        if "maop" not in self.defaults:
            return  # being constructed: all groups are checked when they are there
        try:
            self._check(self.param_groups[-1])
        except ValueError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state):
        super().__setstate__(state)
        self._figures = None

    def load_state_dict(self, state_dict):
        """Loads the state of an AdamW, with or without MAOP. Names and `maop` flags of the groups stay as they are."""
        structure = [{key: group[key] for key in _STRUCTURE if key in group} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, structure, strict=True):
            for key in _STRUCTURE:
                group.pop(key, None)
            group.update(own)

    def step(self, closure=None):
        """One update. `closure`, if given, reevaluates the model and returns the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._project()
        # Torch wraps `step` of every optimizer class in its step hooks: they have run for this call already.
        update = torch.optim.AdamW.step
        update = update.__wrapped__ if getattr(update, "hooked", False) else update
        update(self)
        return loss

    def maop_figures(self) -> dict[str, float]:
        """
        Means over the steps since the last call: `fired_share`, the share of the projected units (tensors, at the
        default granularity) that were in conflict; `cosine`, between gradient and momentum before the projection,
        averaged over the units; `removed_share`, the share of the gradient's norm that was taken out. Empty if MAOP
        did not run. Only this call waits for the device.
        """
        if self._figures is None:
            return {}
        *sums, steps = self._figures.tolist()
        self._figures = None
        if steps == 0:
            return {}
        names = ("fired_share", "cosine", "removed_share")
        return {name: value / steps for name, value in zip(names, sums, strict=True)}

    @torch.no_grad()
    def _project(self):
        units = self._units()
        if not units:
            return
        pairs = [(gradient, momentum) for unit in units for gradient, momentum, _ in unit]
        products = _inner_products(pairs)
        if len(units) < len(pairs):
            products = torch.stack([rows.sum(0) for rows in products.split([len(unit) for unit in units])])
        dot, momentum_sq, gradient_sq = products.unbind(1)
        fired = (dot < 0) & (momentum_sq >= MIN_SQUARED_NORM)
        coefficients = torch.where(fired, -dot / momentum_sq, 0.0)
        # A gradient scaler, or whoever else sets it, has the update skipped, on the device.
        taken = 1 - getattr(self, "found_inf", torch.zeros_like(coefficients[0]))
        for unit, coefficient in zip(units, coefficients, strict=True):
            for gradient, momentum, group in unit:
                if self._option(group, "maop_second_moment") == "projected":
                    _add_scaled_(gradient, momentum, coefficient)
                    continue
                # b m + (1 - b) (g + c m) is what AdamW makes of g, if the momentum is this multiple of m.
                beta1 = group["betas"][0]
                momentum.mul_(1 + coefficient * taken * (1 - beta1) / beta1)

        removed_sq = torch.where(fired, dot.square() / momentum_sq, 0.0).sum()
        figures = [
            fired.to(dot.dtype).mean(),
            (dot / (gradient_sq.sqrt() * momentum_sq.sqrt())).nan_to_num(0.0, 0.0, 0.0).mean(),
            (removed_sq / gradient_sq.sum()).sqrt().nan_to_num(0.0),
            torch.ones_like(removed_sq),
        ]
        figures = torch.stack(figures) * taken
        self._figures = figures + (0.0 if self._figures is None else self._figures)

    def _units(self) -> list[list[tuple[Tensor, Tensor, dict]]]:
        """(gradient, momentum, group) of every tensor to look at, those that are projected as one vector together."""
        units = {}
        for group in self.param_groups:
            if not (group.get("maop") and group.get("maop_enabled", True)):
                continue
            granularity = self._option(group, "maop_granularity")
            names = group.get("param_names", [""] * len(group["params"]))
            for name, param in zip(names, group["params"], strict=True):
                momentum = self.state.get(param, {}).get("exp_avg")
                if momentum is None or param.grad is None or param.grad.is_sparse:
                    continue
                unit = {"tensor": param, "layer": _layer_name(name), "global": None}[granularity]
                units.setdefault(unit, []).append((param.grad, momentum, group))
        return list(units.values())

    def _option(self, group: dict, name: str) -> str:
        return group.get(name, self.defaults[name])

    def _check(self, group: dict):
        for key in group.keys() - {*self.defaults, *_FLAGS}:
            if "maop" in str(key).lower() or get_close_matches(str(key).lower(), ["maop"], cutoff=0.75):
                raise ValueError(f"A parameter group has the key {key!r}; MAOP's are {(*_FLAGS, *_CHOICES)}.")
        _check_values(group)
        if group["maop"] and group["maximize"]:
            raise ValueError("`maximize` must be False in a parameter group with `maop`, got True.")
        if group["maop"] and self._option(group, "maop_second_moment") == "raw" and not group["betas"][0] > 0:
            raise ValueError("`betas[0]` must be above 0 for `maop_second_moment='raw'`, got 0.")
        if group["maop"] and self._option(group, "maop_granularity") == "layer" and "param_names" not in group:
            raise ValueError(
                "`params` must be named, as in `model.named_parameters()`, for `maop_granularity='layer'`; "
                "got parameters without names."
            )


def _check_values(options: dict):
    for flag in _FLAGS:
        if not isinstance(options.get(flag, False), bool):
            raise ValueError(f"`{flag}` must be True or False, got {options[flag]!r}.")
    for choice, choices in _CHOICES.items():
        if options.get(choice, choices[0]) not in choices:
            raise ValueError(f"`{choice}` must be one of {choices}, got {options[choice]!r}.")


def _layer_name(name: str) -> str:
    numbered = _LAYER_NAME.match(name)
    return numbered[0] if numbered else name.rpartition(".")[0]


def _local(tensor: Tensor) -> Tensor:
    return torch.atleast_1d(tensor.to_local() if isinstance(tensor, DTensor) else tensor)


def _slices(gradient: Tensor, momentum: Tensor) -> Iterator[tuple[Tensor, Tensor, torch.dtype]]:
    """This rank's part of both, and the precision to compute in. It comes in slices of about `SLICE_NUMEL` elements
    where computing needs a copy of them (a lower precision to widen, a layout to flatten), in one piece elsewhere."""
    gradient, momentum = _local(gradient), _local(momentum)
    wide = torch.promote_types(torch.promote_types(gradient.dtype, momentum.dtype), torch.float32)
    rows = len(gradient)
    if {gradient.dtype, momentum.dtype} != {wide} or not (gradient.is_contiguous() and momentum.is_contiguous()):
        rows = max(1, SLICE_NUMEL * rows // max(1, gradient.numel()))
    for gradient_slice, momentum_slice in zip(gradient.split(rows), momentum.split(rows), strict=True):
        yield gradient_slice, momentum_slice, wide


def _local_inner_products(gradient: Tensor, momentum: Tensor) -> list[Tensor]:
    parts = []
    for g, m, wide in _slices(gradient, momentum):
        g, m = g.reshape(-1).to(wide), m.reshape(-1).to(wide)
        parts.append((torch.dot(g, m), torch.dot(m, m), torch.dot(g, g)))
    return [reduce(torch.add, part) for part in zip(*parts, strict=True)]


def _inner_products(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """
    g.m, |m|^2 and |g|^2 of each pair, shape `(len(pairs), 3)`, each over the whole tensor where it is sharded.

    Raises:
        ValueError: if a gradient is not sharded as its momentum is.
    """
    by_sharding = {}
    for row, (gradient, momentum) in enumerate(pairs):
        by_sharding.setdefault(_sharding(gradient, momentum), []).append(row)
    products = [None] * len(pairs)
    for sharding, rows in by_sharding.items():
        stacked = torch.stack([product for row in rows for product in _local_inner_products(*pairs[row])])
        if sharding is not None:
            mesh, placements = sharding
            for dim, placement in enumerate(placements):
                if placement.is_shard():
                    dist.all_reduce(stacked, group=mesh.get_group(dim))
        for row, product in zip(rows, stacked.view(-1, 3), strict=True):
            products[row] = product
    return torch.stack(products)


def _sharding(gradient: Tensor, momentum: Tensor):
    sharding, expected = (
        (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
        for tensor in (gradient, momentum)
    )
    if sharding != expected:
        raise ValueError(f"A gradient must be sharded as its momentum is, {expected}, got {sharding}.")
    return sharding


def _add_scaled_(gradient: Tensor, momentum: Tensor, coefficient: Tensor):
    """gradient += coefficient * momentum, in place."""
    for g, m, wide in _slices(gradient, momentum):
        widened = g.to(wide)
        widened.addcmul_(m.to(wide), coefficient)
        if widened is not g:
            g.copy_(widened)


__all__ = ["MAOPAdamW"]
