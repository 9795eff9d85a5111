"""The way back along an inversion, step by step: what each method does there, in one place.

    way = Way(pipe, inverted, prompts, guidance=7.5)
    x_t = way.start()
    for i in range(len(way)):
        x_t = way.step(i, x_t, way.look(i, x_t))

is `techniques.inversion.sample`, whatever the method.  An edit does more in one of its lines,
and so writes the loop itself: see `loops`.  (EDICT, which walks with two latents, has its own.)

    ddim, fixed-point   nothing: guidance leads away from the inversion, and nothing mends it
    null-text           what was learnt for each step stands in the place of ""
    negative, proximal  the source's prompt stands there; proximal drops small differences
    direct              the source's row is put back where the inversion was
    edit-friendly       each step is DDPM's with the noise that was solved for, and the
                        source's row is where the inversion was: see `with_source`
"""

from __future__ import annotations

import torch
from torch import Tensor

from pare.attention import Control
from pare.pipeline import Pipeline
from pare.schedulers import NoiseLevel, Prediction
from pare.text.text_encoder import PromptEmbeddings
from techniques.inversion import Inverted, ddim, edit_friendly, negative

ON_THE_WAY = ("direct", "edit-friendly")
"""Methods whose source row stays where the inversion was, whatever the guidance."""


class Way:
    """One inversion's way back for B rows, from its noise or from where `skip` steps end.

    Steps are counted from there: `i` is 0 to len - 1.  Controls are told the step of the whole
    way, so that what acts at a noise level does not depend on where the way begins.
    """

    def __init__(
        self,
        pipe: Pipeline,
        inverted: Inverted,
        prompts: PromptEmbeddings,
        guidance: float,
        *,
        skip: int = 0,
    ) -> None:
        """
        Args:
            prompts: `cond` of every row; `uncond` where the method has nothing better.
        """
        if inverted.method == "edict":
            raise ValueError("EDICT walks with two latents: see techniques.inversion.edict")
        self.pipe, self.method, self.trace = pipe, inverted.method, inverted.trace
        self.prompts, self.guidance, self.skip = prompts, guidance, skip
        self.solver = ddim.solvers(pipe)[0]
        if self.method == "edit-friendly":
            self.solver = edit_friendly.with_fresh_noise(pipe)
        self.timesteps = self.solver.timesteps(self.trace.steps, skip)
        self.source_text = None
        if self.method in ("negative", "proximal"):
            self.source_text = pipe.encode_prompts([inverted.prompt]).cond

    def __len__(self) -> int:
        return len(self.timesteps)

    def level(self, i: int) -> NoiseLevel:
        return self.timesteps.levels[i]

    def start(self) -> Tensor:
        """What sampling begins from, (B, 4, h, w)."""
        return self.trace.start(self.skip, len(self.prompts), self.pipe.device)

    def inverted_at(self, i: int) -> Tensor:
        """Where the inversion was before step `i`; at len, the image: (1, 4, h, w)."""
        return self.trace.start(self.skip + i, 1, self.pipe.device)

    def uncond(self, i: int) -> Tensor:
        """What stands in the place of "" at step `i`, (B, 77, C)."""
        text = self.prompts.uncond
        if self.trace.uncond is not None:
            text = self.trace.uncond[self.skip + i].to(self.pipe.device)
        elif self.source_text is not None:
            text = self.source_text
        return text.expand_as(self.prompts.cond)

    def look(self, i: int, x_t: Tensor, control: Control | None = None) -> Prediction:
        """The model's guided answer at step `i`."""
        prompts = PromptEmbeddings(cond=self.prompts.cond, uncond=self.uncond(i))
        level = self.level(i)
        if self.method not in ("negative", "proximal"):
            return self.pipe.predict(
                x_t, level, prompts, self.guidance, control=control, step=self.skip + i
            )
        # As `negative.sample_latents`: also at guidance 1 the source's prompt is asked.
        texts = {"uncond": prompts.uncond, "cond": prompts.cond}
        outputs = self.pipe.branch_outputs(x_t, level, texts, control=control, step=self.skip + i)
        difference = outputs["cond"] - outputs["uncond"]
        if self.method == "proximal":
            difference = negative.proximal(difference, negative.QUANTILE)
        output = outputs["uncond"] + self.guidance * difference
        return self.pipe.interpret(output, x_t, level)

    def step(self, i: int, x_t: Tensor, prediction: Prediction) -> Tensor:
        """x_t after step `i`."""
        if self.trace.noise is None:
            return self.solver.step(self.timesteps, i, x_t, prediction, ())[0]
        still = torch.zeros_like(x_t)
        mean, _ = self.solver.step(self.timesteps, i, x_t, prediction, (), noise=still)
        return mean + self.trace.noise[self.skip + i].to(x_t)

    def with_source(self, i: int, x_t: Tensor) -> Tensor:
        """After step `i`: the first row, the source's, back on the inversion, if the method's
        stays there.

        `direct` is made of this.  The source of `edit-friendly` gets there by itself at the
        guidance of the inversion (arXiv:2304.06140 runs the two rows at guidances of their
        own); its answer at another guidance is passed over here, and its attention, all that
        a target has of it, is not changed by guidance.
        """
        if self.method not in ON_THE_WAY:
            return x_t
        return torch.cat([self.inverted_at(i + 1), x_t[1:]])
