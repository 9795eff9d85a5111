// Attention: the cross-attention map of a word, or the self-attention map of a pixel.

const isWord = (run, tokens) => tokens.every((token) => token > 0 && token < run.facts.padding - 1);

/** The sum of some tokens' attention weights in one layer at one step. */
function weightSum(run, site, tokens, k) {
  let total = null;
  for (const token of tokens) {
    const { bits, low, high } = run.stackImage(site, token, k);
    total ??= new Float32Array(bits.length);
    for (let i = 0; i < total.length; i++) total[i] += low + (bits[i] / 255) * (high - low);
  }
  return total;
}

/** Some tokens' attention weights in one layer at one step, {values, h, w}: a word's among the
 *  words of the prompt; those of start, end and padding, which take most, among all tokens. */
function weightsOf(run, site, tokens, position) {
  const k = Math.min(position, run.last - 1);
  const { h, w } = run.stackImage(site, tokens[0], k);
  const values = weightSum(run, site, tokens, k);
  if (isWord(run, tokens)) {
    run.wholes ??= new Map();
    const key = `${site.name} ${k}`;
    if (!run.wholes.has(key)) {
      const words = Array.from({ length: run.facts.padding - 2 }, (_, i) => i + 1);
      run.wholes.set(key, weightSum(run, site, words, k));
    }
    const whole = run.wholes.get(key);
    for (let i = 0; i < values.length; i++) values[i] /= whole[i] || 1;
  }
  return { values, h, w };
}

/** The mean of several layers' maps on the finest grid, interpolated linearly. */
function together(list) {
  const h = Math.max(...list.map((one) => one.h)), w = Math.max(...list.map((one) => one.w));
  const values = new Float32Array(h * w);
  for (const one of list) {
    for (let y = 0; y < h; y++) {
      const fy = Math.max(0, Math.min(one.h - 1, ((y + 0.5) * one.h) / h - 0.5));
      const y0 = Math.floor(fy), y1 = Math.min(one.h - 1, y0 + 1);
      for (let x = 0; x < w; x++) {
        const fx = Math.max(0, Math.min(one.w - 1, ((x + 0.5) * one.w) / w - 0.5));
        const x0 = Math.floor(fx), x1 = Math.min(one.w - 1, x0 + 1);
        const v = one.values;
        const upper = v[y0 * one.w + x0] + (fx - x0) * (v[y0 * one.w + x1] - v[y0 * one.w + x0]);
        const lower = v[y1 * one.w + x0] + (fx - x0) * (v[y1 * one.w + x1] - v[y1 * one.w + x0]);
        values[y * w + x] += (upper + (fy - y0) * (lower - upper)) / list.length;
      }
    }
  }
  return { values, h, w };
}

/** The cell under a point of the image, x and y from 0 to 1. */
function cellAt({ x, y }, [h, w]) {
  return [Math.min(h - 1, Math.floor(y * h)), Math.min(w - 1, Math.floor(x * w))];
}

/** The self-attention weights of the chosen query pixel, {values, h, w}. */
function selfAttention(run, pixel, position) {
  const { grid } = run.facts.self;
  const [row, column] = cellAt(pixel, grid);
  const one = run.stackImage(run.facts.self, Math.min(position, run.last - 1), row * grid[1] + column);
  return { values: Float32Array.from(one.bits, (b) => one.low + (b / 255) * (one.high - one.low)), h: one.h, w: one.w };
}

/** The layers of the page, in a run that may be another one. */
function chosenSites(run) {
  if (!state.site) return run.facts.sites;
  return run.facts.sites.filter((site) => site.name === state.site.name);
}

/** The tokens of the chosen word in a run; none if its prompt lacks the word. */
function tokensIn(run) {
  if (!state.word) return [];
  if (run === state.run) return state.word.tokens;
  const special = specialTokens(run).find((word) => word.text === state.word.text);
  const same = run.facts.words.find((word) => word.text.toLowerCase() === state.word.text.toLowerCase());
  return (special || same || { tokens: [] }).tokens;
}

const specialTokens = (run) => [
  { text: "<start>", tokens: [0] }, { text: "<end>", tokens: [run.facts.padding - 1] },
  { text: "<padding>", tokens: [run.facts.padding] },
];

// --- drawing -----------------------------------------------------------------------------------

/** Colours to lay over an image: dark where the weights are low, clear, orange where they are high. */
function spotlight(bits) {
  const data = new Uint8ClampedArray(4 * bits.length);
  bits.forEach((bit, i) => {
    const light = bit / 255;
    data.set(light > 0.5 ? [255, 150, 50, 130 * (light - 0.5)] : [13, 14, 38, 215 * (1 - 2 * light) ** 0.8], 4 * i);
  });
  return data;
}

const loaded = new Map(); // image elements by URL

function withImage(url, use) {
  let image = loaded.get(url);
  if (!image) {
    image = new Image();
    image.src = url;
    loaded.set(url, image);
  }
  if (image.complete && image.naturalWidth) use(image);
  else image.addEventListener("load", () => use(image), { once: true });
}

/** A run's predicted x0 with its map laid over it, and the caption of both. */
class Overlay {
  constructor(run) {
    this.run = run;
    const { width, height } = run.facts.image;
    this.canvas = make("canvas", { width: 768, height: Math.round((768 * height) / width), role: "img", tabindex: 0 });
    this.scale = legend("", "");
    const sample = this.scale.canvas.getContext("2d");
    sample.putImageData(new ImageData(spotlight(EVERY_BIT), 256, 1), 0, 0);
    this.caption = make("figcaption");
    this.figure = make("figure", { class: "overlay", style: `--aspect: ${width / height}` }, this.canvas, this.scale, this.caption);
    this.canvas.addEventListener("click", (event) => {
      const box = this.canvas.getBoundingClientRect();
      choosePixel({ x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height });
    });
    this.canvas.addEventListener("keydown", (event) => {
      if (!run.facts.self || event.ctrlKey || event.metaKey || event.altKey) return;
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Enter: [0, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      const [h, w] = run.facts.self.grid;
      const at = state.pixel || { x: 0.5, y: 0.5 };
      const inside = (v) => Math.max(0, Math.min(0.9999, v));
      choosePixel({ x: inside(at.x + move[0] / w), y: inside(at.y + move[1] / h) });
    });
  }

  show(position) {
    const { run, canvas } = this;
    const tokens = tokensIn(run);
    const sites = chosenSites(run);
    let map = null;
    if (state.pixel && run.facts.self) map = selfAttention(run, state.pixel, position);
    else if (tokens.length && sites.length) map = together(sites.map((site) => weightsOf(run, site, tokens, position)));
    const scaled = map && stretched(map.values);
    this.scale.hidden = !map;
    if (map) this.scale.show(percent(scaled.low), percent(scaled.high));
    this.caption.textContent = this.words(position, map, tokens);
    canvas.setAttribute("aria-label", this.caption.textContent);
    const wanted = this.wanted = Symbol("what is to be shown");
    withImage(run.frame("x0", position), (image) => {
      if (this.wanted !== wanted) return; // the slider has gone on
      const context = canvas.getContext("2d");
      context.imageSmoothingQuality = "high";
      context.drawImage(image, 0, 0, canvas.width, canvas.height);
      if (!map) return;
      const small = make("canvas", { width: map.w, height: map.h });
      small.getContext("2d").putImageData(new ImageData(spotlight(scaled.bits), map.w, map.h), 0, 0);
      context.drawImage(small, 0, 0, canvas.width, canvas.height);
      if (state.pixel) this.markPixel(context);
    });
  }

  /** A frame around the query pixel's cell. */
  markPixel(context) {
    const [h, w] = this.run.facts.self.grid;
    const [row, column] = cellAt(state.pixel, [h, w]);
    const [width, height] = [this.canvas.width / w, this.canvas.height / h];
    for (const [colour, line] of [["black", 7], ["white", 3]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.strokeRect(column * width, row * height, width, height);
    }
  }

  words(position, map, tokens) {
    const { run } = this;
    const when = position === run.last ? "the last step" : `step ${run.steps[position].i + 1}`;
    if (state.pixel && map) {
      const { stage, grid, layers } = run.facts.self;
      return `Self-attention of the framed pixel at ${when}: its weights for all pixels, mean of the heads and ` +
        `of ${layers === 1 ? "the layer" : `the ${layers} layers`} of resolution stage ${stage} (${shape(grid)}).`;
    }
    if (state.pixel) return "This run's self-attention was not recorded.";
    if (state.word && !tokens.length) return `The prompt of this run has no “${state.word.text}”.`;
    if (!map) return position === run.last ? "The finished image." : `The predicted x0 at ${when}.`;
    const among = isWord(run, tokens) ? "among the words of the prompt" : "among all tokens";
    const where = state.site ? `in ${state.site.label}` : "mean of all layers";
    return `“${state.word.text}” at ${when}: attention weight ${percent(mean(map.values))} on average, ${among}, ${where}.`;
  }
}

function choosePixel(pixel) {
  if (!state.run.facts.self) return;
  Object.assign(state, { pixel, word: null });
  refreshAttention();
}

const overlays = []; // of this page's run, and of the one that it is compared with
let weightChart = null;

function refreshAttention() {
  for (const button of byId("sentence").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.word === state.word));
  }
  const tokens = tokensIn(state.run);
  weightChart = null;
  byId("layer-maps").hidden = !tokens.length;
  byId("word-maps").hidden = Boolean(tokens.length);
  if (tokens.length) {
    const { run } = state;
    const weights = run.steps.map((_, k) => mean(chosenSites(run).map((site) => mean(weightsOf(run, site, tokens, k).values))));
    weightChart = chart(run, "Mean attention weight at each step", [
      { name: `“${state.word.text}”${state.site ? ` in ${state.site.label}` : ", all layers"}`,
        values: weights, colour: ACCENT, format: percent },
    ], [{ from: 0, format: percent }]);
    byId("weight-chart").replaceChildren(weightChart);
  }
  showAttention(state.position);
}

function showAttention(position) {
  const { run } = state;
  const tokens = tokensIn(run);
  byId("all-layers").disabled = state.site === null;
  for (const button of tokens.length ? byId("sites").children : []) {
    button.setAttribute("aria-pressed", String(button.site === state.site));
    drawMap(button, weightsOf(run, button.site, tokens, position));
  }
  for (const button of tokens.length ? [] : byId("by-word").children) {
    drawMap(button, together(run.facts.sites.map((site) => weightsOf(run, site, button.word.tokens, position))));
  }
  for (const overlay of overlays) overlay.show(overlay.run.positionLike(run, position));
  if (weightChart) weightChart.show(position);
}

/** Draw a map into its button, each from its own lowest to its own highest weight. */
function drawMap(button, { values, h, w }) {
  const scaled = stretched(values);
  draw(button.querySelector("canvas"), scaled.bits, h, w, HEAT);
  button.querySelector("small").textContent = `${percent(scaled.low)} – ${percent(scaled.high)}`;
}

/** A small map under which its name and its range stand. */
function mapButton(label, title, onclick) {
  return make("button", { type: "button", class: "map", "aria-pressed": "false", title, onclick }, make("canvas"), label, make("small"));
}

/** The prompt as buttons, the layers' small maps, and the tokens. */
function buildAttention() {
  const { run } = state;
  const { sites, words, tokens, padding } = run.facts;
  if (!sites.length) { byId("attention").hidden = true; return; }
  overlays.push(new Overlay(run));
  byId("overlays").append(overlays[0].figure);
  const sentence = byId("sentence");
  const add = (word, kind) => {
    if (!word.tokens.length) { sentence.append(make("span", { class: "lost", title: "cut off: a prompt has 77 tokens at most" }, word.text), " "); return; }
    const button = make("button", { type: "button", class: kind, "aria-pressed": "false" }, word.text);
    button.word = word;
    // The pointer shows; a click, a tap or a key keeps.
    let before = null;
    const focus = ({ word: chosen, pixel }) => { Object.assign(state, { word: chosen, pixel }); refreshAttention(); };
    button.addEventListener("pointerenter", (event) => {
      if (event.pointerType !== "mouse") return;
      before = { word: state.word, pixel: state.pixel };
      focus({ word, pixel: null });
    });
    button.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && before && before.word !== word) focus(before);
      before = null;
    });
    button.addEventListener("click", () => {
      const kept = before ? before.word === word : state.word === word;
      before = { word: kept ? null : word, pixel: null };
      focus(before);
      // On a small screen the image may be under the step bar.
      const bottom = overlays[0].canvas.getBoundingClientRect().bottom;
      if (bottom > byId("transport").getBoundingClientRect().top) sentence.scrollIntoView({ behavior: "instant" });
    });
    sentence.append(button, " ");
  };
  for (const word of words) add(word, /[\p{L}\p{N}]/u.test(word.text) ? "" : "punctuation");
  for (const word of specialTokens(run)) add(word, "special");
  for (const site of sites) {
    const button = mapButton(site.label.replace(/_blocks?/, "").replace("attentions.", ""), `${site.name}, ${shape(site.grid)} pixels`,
      () => { state.site = state.site === site ? null : site; refreshAttention(); });
    button.site = site;
    byId("sites").append(button);
  }
  for (const word of [...words.filter((one) => one.tokens.length), ...specialTokens(run)]) {
    const button = mapButton(word.text, `the map of “${word.text}”`,
      () => { Object.assign(state, { word, pixel: null }); refreshAttention(); });
    button.word = word;
    byId("by-word").append(button);
  }
  byId("maps-scale").append(legend("lowest weight of the map", "highest"));
  byId("all-layers").addEventListener("click", () => { state.site = null; refreshAttention(); });
  if (!run.facts.self) byId("pixel-hint").hidden = true;
  byId("token-summary").textContent =
    `${tokens.length} tokens: start, ${padding - 2} of the prompt, end, ${tokens.length - padding} of padding`;
  tokens.slice(0, padding + 1).forEach((token, k) => {
    const inside = k > 0 && k < padding - 1;
    const rest = k === padding ? ` × ${tokens.length - padding}` : "";
    byId("tokens").append(make("li", { class: inside ? "" : "special" }, make("b", {}, token.text + rest),
      make("small", {}, token.id === null ? `${k} …` : `${k} · id ${token.id}`)));
  });
  parts.push(showAttention);
  refreshAttention();
}
