// The slider, the settings, a second run beside this one, and the beginning.

const parts = []; // functions of the position, one for each part of the page
const state = { run: null, position: 0, word: null, pixel: null, site: null, layer: "unet.mid_block", latents: "x_t" };

// --- the slider --------------------------------------------------------------------------------

function go(position) {
  const { run } = state;
  state.position = Math.max(0, Math.min(run.last, position));
  byId("step").value = state.position;
  const step = run.steps[Math.min(state.position, run.last - 1)];
  const finished = state.position === run.last;
  byId("where").replaceChildren(
    make("b", {}, finished ? "finished" : `step ${step.i + 1} of ${run.facts.count}`),
    finished ? ` after ${run.facts.count} steps` : ` · t ${number(step.t)} · σ ${number(Number(step.sigma))} · ᾱ ${percent(step.alpha_bar)}`,
  );
  byId("step").setAttribute("aria-valuetext", byId("where").textContent);
  for (const show of parts) show(state.position);
}

let playing = null;

function play(start) {
  if (playing) clearInterval(playing);
  playing = null;
  const { last } = state.run;
  if (start) {
    if (state.position === last) go(0);
    const pause = Math.max(90, Math.min(400, 6000 / last));
    playing = setInterval(() => (state.position < last ? go(state.position + 1) : play(false)), pause);
  }
  byId("play").textContent = playing ? "❚❚" : "▶";
  byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
}

function startTransport() {
  byId("step").max = state.run.last;
  byId("step").addEventListener("input", (event) => { play(false); go(Number(event.target.value)); });
  byId("play").addEventListener("click", () => play(!playing));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, button, summary, a, canvas") || event.ctrlKey || event.metaKey || event.altKey) return;
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { play(false); go(state.position + move); } else if (event.key === " ") play(!playing);
    else return;
    event.preventDefault();
  });
  byId("transport").hidden = false;
}

/** Where the page opens: half signal, half noise, where the images differ most. */
function openingPosition({ steps }) {
  const apart = steps.map((step) => Math.abs(step.alpha_bar - 0.5));
  return apart.indexOf(Math.min(...apart));
}

// --- head and settings -------------------------------------------------------------------------

const promptOf = (run) => run.facts.about.prompt || "(the empty prompt)";

function buildHead() {
  const { facts } = state.run;
  const { about } = facts;
  byId("prompt").textContent = promptOf(state.run);
  byId("prompt").classList.toggle("empty", !about.prompt);
  const said = [
    `${facts.image.width} × ${facts.image.height} pixels`, `model ${about.model}`,
    `${about.scheduler}, ${about.steps ?? facts.count} steps`, `guidance ${about.guidance}`, `seed ${about.seed}`,
  ];
  if (about.negative) said.push(`negative prompt “${about.negative}”`);
  byId("lede").textContent = said.filter((text) => !/undefined|null/.test(text)).join(" · ");
  byId("finished").src = state.run.objectURL(facts.image.file);
}

/** The settings of this run, and of another one where they differ. */
function showSettings(other = null) {
  const text = (value) => (value === undefined || value === null || value === "" ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));
  const [own, theirs] = [state.run.facts.about, other ? other.facts.about : {}];
  const rows = Object.keys({ ...own, ...theirs }).filter((name) => text(own[name]) || text(theirs[name]));
  byId("settings").replaceChildren(...rows.flatMap((name) => {
    const differs = other && text(own[name]) !== text(theirs[name]);
    const shown = [own, ...(differs ? [theirs] : [])].map((about) =>
      make("dd", {}, name === "command" ? make("code", {}, text(about[name])) : text(about[name])));
    return [make("dt", { class: differs ? "differs" : "" }, name), make("div", { class: "values" }, ...shown)];
  }));
}

// --- a second run ------------------------------------------------------------------------------

/** Show another report's run beside this one, at the same noise level. */
async function compare(file) {
  const page = new DOMParser().parseFromString(await file.text(), "text/html");
  const message = byId("compare-message");
  let other;
  try {
    other = await Run.of(page);
  } catch {
    message.textContent = `${file.name} is not a report of this version of pare`;
    return;
  }
  endComparison();
  message.textContent = `Second run: ${promptOf(other)}`;
  byId("compare-end").hidden = false;
  const row = filmRow(other, `Second run: ${promptOf(other)} · seed ${other.facts.about.seed}`);
  byId("films").querySelector(".run-title").textContent = `This run: ${promptOf(state.run)} · seed ${state.run.facts.about.seed}`;
  const show = (position) => row.show(other.positionLike(state.run, position));
  parts.push(show);
  if (overlays.length) {
    overlays.push(new Overlay(other));
    byId("overlays").append(overlays[1].figure);
  }
  endComparison.undo = () => {
    row.previousSibling.remove();
    row.remove();
    parts.splice(parts.indexOf(show), 1);
    if (overlays.length > 1) overlays.pop().figure.remove();
  };
  document.body.classList.add("two");
  showSettings(other);
  go(state.position);
}

function endComparison() {
  endComparison.undo?.();
  endComparison.undo = null;
  byId("films").querySelector(".run-title").textContent = "";
  byId("compare-message").textContent = "";
  byId("compare-end").hidden = true;
  document.body.classList.remove("two");
  showSettings();
}

function startComparing() {
  const input = byId("compare-file");
  byId("compare").addEventListener("click", () => input.click());
  input.addEventListener("change", () => { if (input.files.length) compare(input.files[0]); input.value = ""; });
  byId("compare-end").addEventListener("click", endComparison);
}

// --- begin -------------------------------------------------------------------------------------

async function begin() {
  state.run = await Run.of(document);
  state.position = openingPosition(state.run);
  buildHead();
  showSettings();
  document.querySelector("main").hidden = false;
  buildAttention();
  buildSteps();
  buildU();
  startTransport();
  startComparing();
  byId("wait").remove();
  go(state.position);
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => {
  const wait = byId("wait");
  if (wait) wait.textContent = `This page could not be drawn: ${error.message}`;
  throw error;
});
