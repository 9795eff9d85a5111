"""The forward process: the noise schedule, its levels, and conversions of x0, eps and v.

    x_t = sqrt(alpha_bar) * x0 + sqrt(1 - alpha_bar) * eps        (arXiv:2006.11239, eq. 4)

Latents are always in this variance-preserving form.  Given x_t, eps and x0 determine each
other.  The noise level may also be given as the noise per unit of signal,
sigma = sqrt((1 - alpha_bar) / alpha_bar), from 0 (clean) to infinity (no signal): the
solvers are shortest when written in sigma.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pare.errors import ConfigError, SchedulerError
from pare.runtime.short_repr import short_repr
from pare.schedulers.hub_config import SchedulerConfig


@dataclass(frozen=True)
class NoiseLevel:
    """A noise level: `t` is the UNet's timestep, `sigma` the noise per unit of signal in x_t.

    `t` may be fractional.  The schedule pairs the two, with two exceptions: DPM++ rounds the
    t of Karras sigmas, and DDIM inversion evaluates the UNet at the t that a step goes to.
    """

    t: float
    sigma: float  # 0 is clean; inf is no signal, the last level of a zero-terminal-SNR schedule

    @property
    def alpha_bar(self) -> float:
        """1 / (1 + sigma^2), the signal's part of x_t's variance."""
        return self.signal_rate**2

    @property
    def signal_rate(self) -> float:
        """sqrt(alpha_bar), the factor of x0 in x_t."""
        return 1.0 / math.hypot(1.0, self.sigma)

    @property
    def noise_rate(self) -> float:
        """sqrt(1 - alpha_bar), the factor of eps in x_t."""
        return 1.0 if math.isinf(self.sigma) else self.sigma / math.hypot(1.0, self.sigma)

    @property
    def lambda_t(self) -> float:
        """log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)), half the log SNR: DPM-Solver's lambda."""
        return math.inf if self.sigma == 0 else -math.log(self.sigma)


# alpha_bar[t] is a product of t + 1 factors: the empty product, 1, stands at t = -1.
CLEAN = NoiseLevel(t=-1.0, sigma=0.0)


@dataclass(frozen=True, eq=False, repr=False)
class NoiseSchedule:
    """The noise schedule of the training: `alpha_bar` (T,), float64 on the CPU, falling with t."""

    alpha_bar: Tensor

    @classmethod
    def from_config(cls, config: SchedulerConfig) -> NoiseSchedule:
        """The schedule that the model was trained with.

        Raises:
            ConfigError: the betas leave no signal before the last timestep.
        """
        alpha_bar = torch.cumprod(1.0 - betas(config), dim=0)
        if alpha_bar[-1] < 1e-30:
            raise ConfigError(
                f"the noise schedule's betas leave nothing of the image after "
                f"{config.num_train_timesteps} timesteps",
                expected="an alpha_bar of at least 1e-30",
            )
        if config.rescale_betas_zero_snr:
            alpha_bar = rescale_to_zero_snr(alpha_bar)
        return cls(alpha_bar)

    def __repr__(self) -> str:
        first, last = self.sigmas[0], self.sigmas[-1]
        return f"NoiseSchedule({len(self.sigmas)} timesteps, sigma {first:.4g} to {last:.4g})"

    @cached_property
    def sigmas(self) -> tuple[float, ...]:
        """sigma of every training timestep, rising with t."""
        sigmas: list[float] = ((1.0 - self.alpha_bar) / self.alpha_bar).sqrt().tolist()
        return tuple(sigmas)

    @cached_property
    def largest_sigma(self) -> float:
        """The last sigma, or where it is infinite a number that can stand for it."""
        *_, before, last = (0.0, *self.sigmas)
        if math.isfinite(last):
            return last
        return 2.0**12 if before < 2.0**12 else 2 * before

    def level(self, t: float) -> NoiseLevel:
        """The level at timestep `t` in [0, T-1]; between two timesteps sigma is linear in t.

        Raises:
            SchedulerError: `t` lies outside the training's timesteps.
        """
        last = len(self.sigmas) - 1
        if not 0 <= t <= last:
            raise SchedulerError(
                f"there is no noise level at timestep {t}", expected=f"0 to {last}"
            )
        below = math.floor(t)
        sigma = self.sigmas[below]
        if t > below:
            sigma += (t - below) * (self.sigmas[below + 1] - sigma)
        return NoiseLevel(float(t), sigma)

    def timestep(self, sigma: float) -> float:
        """The fractional timestep at which the schedule has `sigma`, linear in log sigma.

        A sigma outside the schedule's range gets its first or last timestep.
        """
        sigmas = (*self.sigmas[:-1], self.largest_sigma)
        if sigma <= sigmas[0]:
            return 0.0
        if sigma >= sigmas[-1]:
            return float(len(sigmas) - 1)
        above = bisect_right(sigmas, sigma)
        low, high = math.log(sigmas[above - 1]), math.log(sigmas[above])
        return above - 1 + (math.log(sigma) - low) / (high - low)


def betas(config: SchedulerConfig) -> Tensor:
    """The noise added at each training timestep: (T,), float64."""
    count = config.num_train_timesteps
    if config.trained_betas is not None:
        return torch.tensor(config.trained_betas, dtype=torch.float64)
    if config.beta_schedule == "linear":  # arXiv:2006.11239, section 4
        return torch.linspace(config.beta_start, config.beta_end, count, dtype=torch.float64)
    if config.beta_schedule == "scaled_linear":  # latent diffusion: linear in sqrt(beta)
        start, end = math.sqrt(config.beta_start), math.sqrt(config.beta_end)
        return torch.linspace(start, end, count, dtype=torch.float64) ** 2
    if config.beta_schedule == "sigmoid":
        rising = torch.sigmoid(torch.linspace(-6, 6, count, dtype=torch.float64))
        return rising * (config.beta_end - config.beta_start) + config.beta_start
    time = torch.arange(count + 1, dtype=torch.float64) / count
    if config.beta_schedule == "exp":
        alpha_bar = torch.exp(-12 * time)
    elif config.beta_schedule == "laplace":  # of the log SNR: arXiv:2407.03297
        log_snr = -0.5 * torch.sign(0.5 - time) * torch.log(1 - 2 * (0.5 - time).abs() + 1e-6)
        alpha_bar = torch.sqrt(log_snr.exp() / (1 + log_snr.exp()))
    else:  # squaredcos_cap_v2: arXiv:2102.09672, eq. 17, with its cap on beta
        alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1.0 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def rescale_to_zero_snr(alpha_bar: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that its last value is 0 and its first is kept."""
    root = alpha_bar.sqrt()
    if len(root) == 1:
        raise ConfigError(
            "rescale_betas_zero_snr needs more than one training timestep",
            fix="set it to false",
        )
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2  # arXiv:2305.08891, alg. 1


def add_noise(x0: Tensor, noise: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """The forward process: a sample x_t from x0 at `alpha_bar`, one for all or (B,).

    `x0` and `noise` (B, C, h, w), `noise` of unit variance; x_t has their shape.
    """
    signal_rate, noise_rate = rates(alpha_bar, like=x0)
    return signal_rate * x0 + noise_rate * noise  # arXiv:2006.11239, eq. 4


def velocity(x0: Tensor, noise: Tensor, alpha_bar: float | Tensor) -> Tensor:
    """The target of a v-model, sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0; as in `add_noise`."""
    signal_rate, noise_rate = rates(alpha_bar, like=x0)
    return signal_rate * noise - noise_rate * x0  # arXiv:2202.00512, section 4


def rates(alpha_bar: float | Tensor, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """sqrt(alpha_bar) and sqrt(1 - alpha_bar), ready to multiply images like `like`."""
    if isinstance(alpha_bar, float | int):
        return math.sqrt(alpha_bar), math.sqrt(1.0 - alpha_bar)
    # The roots are taken in float64 on the CPU: 1 - alpha_bar loses digits, and MPS has no float64.
    exact = alpha_bar.to("cpu", torch.float64).view(-1, *[1] * (like.ndim - 1))  # (B, 1, 1, 1)
    return exact.sqrt().to(like), (1.0 - exact).sqrt().to(like)


@dataclass(frozen=True)
class Prediction:
    """The prediction for x_t in both forms: x_t = signal_rate * x0 + noise_rate * eps.

    Each solver takes the one that it integrates, so that no digits are lost in conversions.
    """

    x0: Tensor
    eps: Tensor

    __repr__ = short_repr


def interpret(output: Tensor, x_t: Tensor, level: NoiseLevel, prediction_type: str) -> Prediction:
    """The model's `output` for `x_t` at `level` as x0 and eps; all of one shape.

    `prediction_type` is 'epsilon', 'v_prediction' (arXiv:2202.00512, appendix D) or 'sample'.

    Raises:
        SchedulerError: at a level without signal eps does not determine x0, and at one
            without noise x0 does not determine eps.
    """
    signal, noise = level.signal_rate, level.noise_rate
    if prediction_type == "v_prediction":
        return Prediction(x0=signal * x_t - noise * output, eps=signal * output + noise * x_t)
    if prediction_type == "epsilon":
        if signal == 0:
            raise SchedulerError(
                "a model that predicts eps cannot start at a level without signal "
                "(rescale_betas_zero_snr)",
                fix="use the leading spacing, or a model that predicts v",
            )
        return Prediction(x0=(x_t - noise * output) / signal, eps=output)
    if prediction_type == "sample":
        if noise == 0:
            raise SchedulerError(
                "a model that predicts x0 cannot start at a level without noise",
                fix="set set_alpha_to_one to false",
            )
        return Prediction(x0=output, eps=(x_t - signal * output) / noise)
    raise SchedulerError(
        f"there is no prediction type {prediction_type!r}",
        expected="'epsilon', 'v_prediction' or 'sample'",
    )
