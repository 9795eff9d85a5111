"""Several runs whose calls of one UNet go through it together.

Each run is an ordinary function with its own sampling loop.  All run in threads, one at a time:
where a run calls the UNet it waits, and when all of them wait, the calls of one shape become one
batch.  So runs need not know of each other, and what they do between two calls happens in the
order of the list, as without threads.

A row of a batch does not depend on the others, but matrix products of another size round
differently: float32 images differ from those of a run alone by at most a level or two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from pare.attention import ControlledStep
from pare.unet import UNet

T = TypeVar("T")


@dataclass(eq=False)
class Call:
    """One run's call of a UNet, and its outcome."""

    unet: UNet
    x_t: Tensor
    t: Tensor | float
    text: Tensor
    output: Tensor | None = None
    error: BaseException | None = None

    @property
    def shape(self) -> tuple[object, ...]:
        """What calls must have in common to be made together."""
        x_t, text = self.x_t, self.text
        return id(self.unet), x_t.shape[1:], text.shape[1:], x_t.dtype, text.dtype, x_t.device


@dataclass(eq=False)
class Member:
    """A run that takes part: its thread goes on when it has the turn, and gives it back."""

    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    back: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    call: Call | None = None
    ended: bool = False
    cancelled: bool = False

    def wait(self) -> None:
        """Wait for the turn.

        Raises:
            CancelledError: nobody waits for this run any more.
        """
        self.turn.acquire()
        if self.cancelled:
            raise CancelledError

    def resume(self) -> None:
        """Let the run go on until it calls the UNet or ends."""
        self.call = None
        self.turn.release()
        self.back.acquire()


class Together:
    """Runs functions together; `share` gives each of them its UNet."""

    def __init__(self) -> None:
        self.here = threading.local()

    def run(self, functions: Sequence[Callable[[], T]]) -> list[T | BaseException]:
        """What each function returned or raised."""
        members = [Member() for _ in functions]
        with ThreadPoolExecutor(len(functions) + 1) as pool:
            futures = [
                pool.submit(self.take_part, member, function)
                for member, function in zip(members, functions, strict=True)
            ]
            try:
                while active := [member for member in members if not member.ended]:
                    for member in active:
                        member.resume()
                    for calls in of_one_shape([m.call for m in active if m.call]):
                        made = pool.submit(forward, calls)
                        for call in calls:
                            call.error = made.exception()
            finally:  # after Ctrl-C threads must not wait for a turn that nobody gives
                for member in members:
                    member.cancelled = True
                    member.turn.release()
        return [future.exception() or future.result() for future in futures]

    def take_part(self, member: Member, function: Callable[[], T]) -> T:
        self.here.member = member
        try:
            member.wait()
            return function()
        finally:
            member.ended = True
            member.call = None
            member.back.release()

    def share(self, unet: UNet) -> SharedUNet:
        """The UNet as a run of this group is to call it."""
        return SharedUNet(unet, self)

    def ask(self, call: Call) -> Tensor:
        member: Member = self.here.member
        member.call = call
        member.back.release()
        member.wait()
        if call.error is not None:
            raise call.error
        assert call.output is not None
        return call.output


class SharedUNet:
    """Stands in for a UNet.

    Calls with more than latents, timestep and text, or with gradients, are made alone.
    """

    def __init__(self, unet: UNet, together: Together) -> None:
        self.unet, self.together = unet, together

    def __getattr__(self, name: str) -> Any:
        if name == "unet":  # while it is copied
            raise AttributeError(name)
        return getattr(self.unet, name)

    def __call__(
        self,
        x_t: Tensor,
        t: Tensor | float,
        text: Tensor,
        control: ControlledStep | None = None,
        guidance: Tensor | float | None = None,
    ) -> Tensor:
        if control is not None or guidance is not None or torch.is_grad_enabled():
            alone: Tensor = self.unet(x_t, t, text, control, guidance=guidance)
            return alone
        return self.together.ask(Call(self.unet, x_t, t, text))


def of_one_shape(calls: Sequence[Call]) -> list[list[Call]]:
    groups: dict[tuple[object, ...], list[Call]] = {}
    for call in calls:
        groups.setdefault(call.shape, []).append(call)
    return list(groups.values())


@torch.no_grad()
def forward(calls: Sequence[Call]) -> None:
    """One forward pass for all calls, which have one shape."""
    first = calls[0]
    if len(calls) == 1:
        first.output = first.unet(first.x_t, first.t, first.text)
        return
    rows = [len(call.x_t) for call in calls]
    times = [
        torch.as_tensor(call.t, device=first.x_t.device).expand(count)
        for call, count in zip(calls, rows, strict=True)
    ]
    output = first.unet(
        torch.cat([call.x_t for call in calls]),
        torch.cat(times),
        torch.cat([call.text for call in calls]),
    )
    for call, own in zip(calls, output.split(rows), strict=True):
        call.output = own
