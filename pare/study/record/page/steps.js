// Denoising, step by step: latents and predictions as images, the noise schedule, guidance.

/** A run's row of images: x_t, predicted x0, both branches, and what the prompt changes. */
function filmRow(run, title) {
  const row = make("div", { class: "films", style: `--aspect: ${run.facts.image.width / run.facts.image.height}` });
  const sketched = run.facts.decoded ? "" : " Not decoded by the VAE: each latent pixel’s colour is a linear fit.";
  const shown = [
    ["x_t", make("span", {}, sub("x", "t"), ", noisy latents"), `The input of the UNet at this step, decoded.${sketched}`],
    ["x0", make("span", {}, "predicted ", sub("x", "0")), "With guidance: the next step goes towards it."],
    ["cond", make("span", {}, sub("x", "0"), ", conditional"), "Predicted from the prompt, without guidance."],
    ["uncond", make("span", {}, sub("x", "0"), ", unconditional"), "Predicted from the negative prompt. Guidance extrapolates away from it."],
  ].filter(([name]) => run.facts.films[name]);
  const images = shown.map(([name, heading, words]) => {
    const image = make("img", { class: "frame", alt: `${name} at this step` });
    row.append(make("div", {}, make("h3", {}, heading), image, make("p", {}, words)));
    return [name, image];
  });
  let heat = null, scale = null;
  if (run.facts.guidance) {
    heat = make("canvas", { style: "aspect-ratio: var(--aspect)" });
    scale = legend("", "");
    row.append(make("div", {}, make("h3", {}, "conditional − unconditional"), heat, scale,
      make("p", {}, "Root mean square over the channels of the two UNet outputs’ difference: large where the prompt changes the prediction.")));
  }
  row.show = (position) => {
    for (const [name, image] of images) image.src = run.frame(name, position);
    if (heat) {
      const one = run.stackImage(run.facts.guidance.heat, position);
      draw(heat, one.bits, one.h, one.w, HEAT);
      scale.show(number(one.low), number(one.high));
    }
  };
  byId("films").append(make("h3", { class: "run-title" }, title), row);
  return row;
}

function buildSteps() {
  const { run } = state;
  const row = filmRow(run, "");
  parts.push(row.show);

  const schedule = chart(run, "The noise schedule", [
    { name: "ᾱ, the signal’s part of the variance", values: run.steps.map((step) => step.alpha_bar), colour: SECOND, format: percent },
    { name: "noise level σ = √((1 − ᾱ) / ᾱ)", values: run.steps.map((step) => Number(step.sigma)), colour: ACCENT, axis: 1 },
  ], [{ from: 0, to: 1, format: percent }, { log: true }]);
  byId("schedule-chart").append(make("h3", {}, "Noise schedule"), schedule);
  parts.push(schedule.show);
  if (run.facts.guidance) {
    const { change, cond, cosine } = run.facts.guidance;
    const guidance = chart(run, "The two branches of the guidance", [
      { name: "‖cond − uncond‖ / ‖cond‖", values: change.map((v, k) => v / (cond[k] || 1)), colour: ACCENT, format: percent },
      { name: "cosine similarity", values: cosine, colour: SECOND, axis: 1, format: (v) => v.toFixed(4) },
    ], [{ from: 0, format: percent }, { from: 0, to: 1 }]);
    byId("guidance-chart").append(make("h3", {}, "Conditional and unconditional output"), guidance);
    parts.push(guidance.show);
  }

  const canvases = [0, 1, 2, 3].map((channel) => {
    const canvas = make("canvas"), scale = legend("", "", GREY);
    byId("latents").append(make("div", {}, `channel ${channel}`, canvas, scale));
    return [canvas, scale];
  });
  const show = (position) => canvases.forEach(([canvas, scale], channel) => {
    const one = run.stackImage(run.facts.latents[state.latents], position, channel);
    draw(canvas, one.bits, one.h, one.w, GREY);
    scale.show(number(one.low), number(one.high));
  });
  for (const button of document.querySelectorAll("[data-latents]")) {
    button.addEventListener("click", () => {
      state.latents = button.dataset.latents;
      for (const other of document.querySelectorAll("[data-latents]")) {
        other.setAttribute("aria-pressed", String(other === button));
      }
      show(state.position);
    });
  }
  parts.push(show);
}
