"use strict";

// What the page shows, from numbers in the page alone.  In order: the numbers, small helpers,
// then one part of the page after the other, each with a `show(position)` that draws it for the
// slider's position: k is "before step k", the last position is "finished".

const facts = JSON.parse(document.getElementById("facts").textContent);
const steps = facts.steps;
const last = steps.length; // the slider's last position: finished
const state = { position: last, word: null, site: null, layer: "unet.mid_block", latents: "x_t" };
const parts = []; // functions of the position, one for each part of the page

// --- the numbers -----------------------------------------------------------------------------

let block; // an ArrayBuffer: all arrays and image files

async function unpack() {
  const text = atob(document.getElementById("numbers").textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  block = await new Response(stream).arrayBuffer();
}

/** An array of the block: {values, shape}. */
function array({ at, shape, type }) {
  const count = shape.reduce((a, b) => a * b, 1);
  const kind = type === "uint8" ? Uint8Array : Float32Array;
  return { values: new kind(block, at, count), shape };
}

/** One small image of a stack: {bits, low, high, h, w}; `place` has an index for each axis. */
function stackImage(stack, ...place) {
  const { values, shape } = array(stack.images);
  const [h, w] = shape.slice(-2);
  let index = 0;
  place.forEach((k, axis) => { index = index * shape[axis] + Math.min(k, shape[axis] - 1); });
  const ends = array(stack.ends).values;
  return {
    bits: values.subarray(index * h * w, (index + 1) * h * w),
    low: ends[2 * index], high: ends[2 * index + 1], h, w,
  };
}

const files = new Map();

/** The URL of an image file in the block. */
function fileURL([at, size]) {
  if (!files.has(at)) {
    files.set(at, URL.createObjectURL(new Blob([new Uint8Array(block, at, size)], { type: "image/webp" })));
  }
  return files.get(at);
}

// --- helpers ---------------------------------------------------------------------------------

const byId = (id) => document.getElementById(id);

/** An element with attributes and children; text is always text, never HTML. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") element.style.cssText = value;
    else if (value !== null && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function sub(letter, index) {
  return make("span", {}, letter, make("sub", {}, index));
}

function short(value) {
  for (const unit of ["", "k", "M", "G", "T"]) {
    if (Math.abs(value) < 999.5 || unit === "T") {
      return (unit && Math.abs(value) < 99.95 ? value.toPrecision(3) : value.toFixed(0)) + unit;
    }
    value /= 1000;
  }
}

function number(value) {
  if (!Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(1);
  return String(Number(value.toPrecision(3)));
}

const percent = (share) => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;

/** 256 colours between some, [red, green, blue] each; as canvases want them, 32 bits a pixel. */
function ramp(stops) {
  const table = new Uint8ClampedArray(256 * 4);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * (stops.length - 1);
    const k = Math.min(Math.floor(at), stops.length - 2);
    for (let c = 0; c < 3; c++) table[4 * i + c] = stops[k][c] + (at - k) * (stops[k + 1][c] - stops[k][c]);
    table[4 * i + 3] = 255;
  }
  return new Uint32Array(table.buffer);
}

const HEAT = ramp([[13, 14, 38], [76, 29, 105], [176, 48, 92], [240, 126, 60], [253, 243, 184]]);
const GREY = ramp([[0, 0, 0], [255, 255, 255]]);
const SIGNED = ramp([[24, 78, 119], [120, 176, 200], [246, 244, 239], [231, 148, 101], [142, 42, 22]]);

/** Draw values of 0 to 255 into a canvas of just so many pixels; CSS makes them large. */
function draw(canvas, bits, h, w, colours) {
  canvas.width = w;
  canvas.height = h;
  const context = canvas.getContext("2d");
  const image = context.createImageData(w, h);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0; i < h * w; i++) pixels[i] = colours[bits[i]];
  context.putImageData(image, 0, 0);
}

/** As `draw`, of numbers around 0: white is 0, one colour below, one above. */
function drawSigned(canvas, one) {
  const most = Math.max(Math.abs(one.low), Math.abs(one.high)) || 1;
  const span = one.high - one.low;
  const bits = Uint8Array.from(one.bits, (b) => 127.5 + 127.5 * ((one.low + (b / 255) * span) / most));
  draw(canvas, bits, one.h, one.w, SIGNED);
}

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

/** Curves over the steps, with the slider's position in them; click to go there.
 *  series: [{name, values, colour, low, high, format}], each in its own scale unless `shared`. */
function chart(title, series, { shared = false } = {}) {
  const W = 600, H = 120;
  const root = make("div", { class: "chart" });
  const legend = make("div", { class: "legend" });
  const plot = svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img" });
  plot.setAttribute("aria-label", title);
  plot.append(svg("path", { class: "frame-line", d: `M0 ${H} H${W}` }));
  const x = (k) => (series[0].values.length > 1 ? (k / (series[0].values.length - 1)) * W : W / 2);
  const numbers = (one) => [...one.values, ...(one.low || []), ...(one.high || [])].filter(Number.isFinite);
  const everything = series.flatMap(numbers);
  const labels = [];
  for (const one of series) {
    const range = shared ? everything : numbers(one);
    const top = Math.max(...range), bottom = one.from ?? Math.min(...range);
    const y = (v) => H - 3 - ((v - bottom) / (top - bottom || 1)) * (H - 6);
    const line = (values) => values.map((v, k) => `${x(k).toFixed(1)} ${y(Number.isFinite(v) ? v : bottom).toFixed(1)}`);
    if (one.low) {
      const d = `M${line(one.high).join("L")}L${line(one.low).reverse().join("L")}Z`;
      plot.append(svg("path", { class: "band", d, style: `fill:${one.colour}` }));
    }
    plot.append(svg("path", { class: "series", d: `M${line(one.values).join("L")}`, style: `stroke:${one.colour}` }));
    const value = make("b");
    labels.push(value);
    legend.append(make("span", {}, make("i", { style: `background:${one.colour}` }), `${one.name} `, value));
  }
  const cursor = svg("line", { class: "cursor", y1: 0, y2: H });
  plot.append(cursor);
  plot.addEventListener("pointerdown", (event) => {
    const box = plot.getBoundingClientRect();
    go(Math.round(((event.clientX - box.left) / box.width) * (series[0].values.length - 1)));
  });
  root.append(legend, plot);
  root.show = (position) => {
    const k = Math.min(position, series[0].values.length - 1);
    cursor.setAttribute("x1", x(k));
    cursor.setAttribute("x2", x(k));
    series.forEach((one, i) => { labels[i].textContent = (one.format || number)(one.values[k], k); });
  };
  root.show(state.position);
  return root;
}

const ACCENT = "var(--accent)", SECOND = "var(--second)";

// --- the slider ------------------------------------------------------------------------------

function go(position) {
  state.position = Math.max(0, Math.min(last, position));
  byId("step").value = state.position;
  const step = steps[Math.min(state.position, last - 1)];
  const finished = state.position === last;
  byId("where").replaceChildren(
    make("b", {}, finished ? "finished" : `step ${step.i + 1} of ${facts.count}`),
    finished ? ` after ${facts.count} steps`
      : ` · t ${number(step.t)} · σ ${number(Number(step.sigma))} · ${percent(step.alpha_bar)} signal`,
  );
  byId("step").setAttribute("aria-valuetext", byId("where").textContent);
  for (const show of parts) show(state.position);
}

let playing = null;

function play(start) {
  if (playing) clearInterval(playing);
  playing = null;
  if (start) {
    if (state.position === last) go(0);
    const pause = Math.max(90, Math.min(400, 6000 / last));
    playing = setInterval(() => (state.position < last ? go(state.position + 1) : play(false)), pause);
  }
  byId("play").textContent = playing ? "❚❚" : "▶";
  byId("play").setAttribute("aria-label", playing ? "Pause" : "Play");
}

function startTransport() {
  byId("step").max = last;
  byId("step").addEventListener("input", (event) => { play(false); go(Number(event.target.value)); });
  byId("play").addEventListener("click", () => play(!playing));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, button, summary, a") || event.ctrlKey || event.metaKey || event.altKey) return;
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { play(false); go(state.position + move); } else if (event.key === " ") play(!playing);
    else return;
    event.preventDefault();
  });
  byId("transport").hidden = false;
}

// --- head and record -------------------------------------------------------------------------

function head() {
  const about = facts.about;
  byId("prompt").textContent = about.prompt || "(the empty prompt)";
  byId("prompt").classList.toggle("empty", !about.prompt);
  const said = [
    `${facts.image.width} × ${facts.image.height} pixels`, `model ${about.model}`,
    `${about.scheduler}, ${about.steps ?? facts.count} steps`, `guidance ${about.guidance}`, `seed ${about.seed}`,
  ];
  if (about.negative) said.push(`without “${about.negative}”`);
  byId("lede").textContent = said.filter((text) => !/undefined|null/.test(text)).join(" · ");
  for (const [name, value] of Object.entries(about)) {
    if (value === null || value === "") continue;
    const text = typeof value === "object" ? JSON.stringify(value) : String(value);
    byId("settings").append(make("dt", {}, name), make("dd", {}, name === "command" ? make("code", {}, text) : text));
  }
}

// --- words -----------------------------------------------------------------------------------

const sites = facts.sites;

/** The tokens of the chosen word. */
const chosenTokens = () => (state.word === null ? [] : state.word.tokens);

const isWord = (tokens) => tokens.every((token) => token > 0 && token < facts.padding - 1);
const everyWord = Array.from({ length: facts.padding - 2 }, (_, i) => i + 1);
const wholes = new Map(); // what all words together take, by layer and step

/** What some tokens together take of every pixel's attention, in one layer at one step. */
function sum(site, tokens, k) {
  let total = null;
  for (const token of tokens) {
    const { bits, low, high } = stackImage(site, token, k);
    total ??= new Float32Array(bits.length);
    for (let i = 0; i < total.length; i++) total[i] += low + (bits[i] / 255) * (high - low);
  }
  return total;
}

/** The share of some tokens in one layer at one step, {values, h, w}: of what goes to words;
 *  of start, end and padding, which take most of it, of all. */
function share(site, tokens, position) {
  const k = Math.min(position, last - 1);
  const { h, w } = stackImage(site, tokens[0], k);
  const values = sum(site, tokens, k);
  if (isWord(tokens)) {
    const key = `${site.name} ${k}`;
    if (!wholes.has(key)) wholes.set(key, sum(site, everyWord, k));
    const whole = wholes.get(key);
    for (let i = 0; i < values.length; i++) values[i] /= whole[i] || 1;
  }
  return { values, h, w };
}

/** Several layers' shares on one grid, averaged; between pixels straight lines. */
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

const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

/** Stretched to 0 … 255. */
function stretched(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  return Uint8Array.from(values, (v) => (high > low ? (255 * (v - low)) / (high - low) : 0));
}

/** The mean share of the word over the image, step by step. */
function sharesOverSteps(tokens) {
  const seen = state.site ? [state.site] : sites;
  return steps.map((_, k) => mean(seen.map((site) => mean(share(site, tokens, k).values))));
}

let shareChart = null;

function refreshWords() {
  for (const button of byId("sentence").querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.word === state.word));
  }
  const tokens = chosenTokens();
  shareChart = null;
  byId("share-chart").replaceChildren();
  if (tokens.length) {
    shareChart = chart("Share of the attention over the steps", [
      { name: `“${state.word.text}”${state.site ? ` in ${state.site.label}` : ", all layers"}`,
        values: sharesOverSteps(tokens), colour: ACCENT, from: 0, format: percent },
    ]);
    byId("share-chart").append(shareChart);
  } else {
    byId("share-chart").append(make("p", { class: "hint" }, "Choose a word."));
  }
  showWords(state.position);
}

function words() {
  if (!sites.length) { byId("words").hidden = true; return; }
  const sentence = byId("sentence");
  const special = [{ text: "<start>", tokens: [0] }, { text: "<end>", tokens: [facts.padding - 1] },
                   { text: "<padding>", tokens: [facts.padding] }];
  const add = (word, kind) => {
    if (!word.tokens.length) { sentence.append(make("span", { class: "lost" }, word.text), " "); return; }
    const button = make("button", { type: "button", class: kind, "aria-pressed": "false" }, word.text);
    button.word = word;
    // The pointer shows; a click, a tap or a key keeps.
    let before = null;
    button.addEventListener("pointerenter", (event) => {
      if (event.pointerType !== "mouse") return;
      before = state.word;
      state.word = word;
      refreshWords();
    });
    button.addEventListener("pointerleave", (event) => {
      if (event.pointerType === "mouse" && before !== word) { state.word = before; refreshWords(); }
    });
    button.addEventListener("click", () => {
      if (before === word) { state.word = null; before = null; } else { state.word = word; before = word; }
      refreshWords();
    });
    sentence.append(button, " ");
  };
  for (const word of facts.words) add(word, /[\p{L}\p{N}]/u.test(word.text) ? "" : "punctuation");
  for (const word of special) add(word, "special");
  for (const site of sites) {
    const button = make("button", { type: "button", class: "site", "aria-pressed": "false",
      title: `${site.name}, ${site.grid[0]} × ${site.grid[1]} pixels` },
      make("canvas"), site.label.replace(/_blocks?/, "").replace("attentions.", ""));
    button.site = site;
    button.addEventListener("click", () => { state.site = state.site === site ? null : site; refreshWords(); });
    byId("sites").append(button);
  }
  byId("all-layers").addEventListener("click", () => { state.site = null; refreshWords(); });
  const own = facts.padding;
  byId("token-summary").textContent =
    `${facts.tokens.length} tokens: start, ${own - 2} of the prompt, end, ${facts.tokens.length - own} of padding`;
  facts.tokens.forEach((token, k) => {
    const inside = k > 0 && k < own - 1;
    if (k >= own + 1) return;
    const rest = k === own ? ` × ${facts.tokens.length - own}` : "";
    byId("tokens").append(make("li", { class: inside ? "" : "special" }, make("b", {}, token.text + rest),
      make("small", {}, token.id === null ? `${k} …` : `${k} · id ${token.id}`)));
  });
  const seen = facts.words.filter((word) => word.tokens.length);
  state.word = seen.reduce((longest, word) => (word.text.length > longest.text.length ? word : longest), seen[0] || special[0]);
  parts.push(showWords);
}

const images = new Map(); // image elements by URL, decoded

function withImage(url, use) {
  let image = images.get(url);
  if (!image) {
    image = new Image();
    image.src = url;
    images.set(url, image);
  }
  if (image.complete && image.naturalWidth) use(image);
  else image.addEventListener("load", () => use(image), { once: true });
}

/** The image as the model foresees it at a position. */
const foreseen = (position) =>
  position === last ? facts.image.file : facts.films.x0[Math.min(position, facts.films.x0.length - 1)];

function showWords(position) {
  const tokens = chosenTokens();
  byId("all-layers").disabled = state.site === null;
  for (const button of byId("sites").children) {
    button.setAttribute("aria-pressed", String(button.site === state.site));
    const canvas = button.querySelector("canvas");
    if (tokens.length) {
      const one = share(button.site, tokens, position);
      draw(canvas, stretched(one.values), one.h, one.w, HEAT);
    } else canvas.width = canvas.height = 1;
  }
  const seen = state.site ? [state.site] : sites;
  const heat = tokens.length ? together(seen.map((site) => share(site, tokens, position))) : null;
  const canvas = byId("overlay");
  withImage(fileURL(foreseen(position)), (image) => {
    if (position !== state.position) return; // the slider has gone on
    canvas.width = 768;
    canvas.height = Math.round((768 * facts.image.height) / facts.image.width);
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    if (!heat) return;
    // A spotlight: where nobody looks, the image goes dark.
    const small = make("canvas", { width: heat.w, height: heat.h });
    const bits = stretched(heat.values);
    const data = small.getContext("2d").createImageData(heat.w, heat.h);
    for (let i = 0; i < bits.length; i++) {
      const light = bits[i] / 255;
      data.data.set(light > 0.5 ? [255, 150, 50] : [13, 14, 38], 4 * i);
      data.data[4 * i + 3] = light > 0.5 ? 130 * (light - 0.5) : 215 * (1 - 2 * light) ** 0.8;
    }
    small.getContext("2d").putImageData(data, 0, 0);
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
  });
  const where = state.site ? `in ${state.site.label}` : "on average over all layers";
  const what = tokens.length && isWord(tokens) ? "of the attention that goes to words" : "of all attention";
  const text = heat
    ? `“${state.word.text}” takes ${percent(mean(heat.values))} ${what} ${where}, at ` +
      `${position === last ? "the last step" : `step ${steps[position].i + 1}`}; up to ${percent(Math.max(...heat.values))} in a place.`
    : "The image as the model foresees it at this step.";
  byId("overlay-caption").textContent = text;
  canvas.setAttribute("aria-label", text);
  if (shareChart) shareChart.show(position);
}

// --- steps -----------------------------------------------------------------------------------

function walk() {
  const films = byId("films");
  films.style.setProperty("--aspect", facts.image.width / facts.image.height);
  const how = facts.decoded ? "" : " A sketch: each latent pixel’s colour by a linear fit.";
  const shown = [
    ["x_t", sub("x", "t"), `What the model is given: image and noise.${how}`],
    ["x0", sub("x", "0"), "What it foresees at the end, under guidance."],
    ["cond", "the prompt alone", "What it would foresee without guidance."],
    ["uncond", "no prompt", "What it foresees from the negative prompt, which guidance leads away from."],
  ].filter(([name]) => facts.films[name]);
  const images = shown.map(([name, title, words]) => {
    const image = make("img", { class: "frame", alt: `${name} at this step` });
    films.append(make("div", {}, make("h3", {}, title), image, make("p", {}, words)));
    return [name, image];
  });
  let heat = null;
  if (facts.guidance) {
    heat = make("canvas", { style: "aspect-ratio: var(--aspect)" });
    films.append(make("div", {}, make("h3", {}, "what the prompt changed"), heat,
      make("p", {}, "The difference of the two answers, pixel by pixel: bright where the prompt matters.")));
  }
  parts.push((position) => {
    for (const [name, image] of images) {
      const film = facts.films[name];
      image.src = position === last && name !== "uncond" && name !== "cond" ? fileURL(facts.image.file)
        : fileURL(film[Math.min(position, film.length - 1)]);
    }
    if (heat) {
      const one = stackImage(facts.guidance.heat, position);
      draw(heat, one.bits, one.h, one.w, HEAT);
    }
  });

  const schedule = chart("The schedule", [
    { name: "signal, ᾱ", values: steps.map((step) => step.alpha_bar), colour: SECOND, from: 0, format: percent },
    { name: "noise, log σ", values: steps.map((step) => Math.log(Math.max(Number(step.sigma), 1e-4))), colour: ACCENT,
      format: (v) => `σ ${number(Math.exp(v))}` },
  ]);
  byId("schedule-chart").append(make("h3", {}, "The schedule"), schedule);
  parts.push(schedule.show);
  if (facts.guidance) {
    const relative = facts.guidance.change.map((v, k) => v / (facts.guidance.cond[k] || 1));
    const guidance = chart("What guidance changed", [
      { name: "‖with − without prompt‖ / ‖with‖", values: relative, colour: ACCENT, from: 0, format: percent },
      { name: "their cosine", values: facts.guidance.cosine, colour: SECOND },
    ]);
    byId("guidance-chart").append(make("h3", {}, "What the prompt changed"), guidance);
    parts.push(guidance.show);
  }

  const canvases = [0, 1, 2, 3].map((channel) => {
    const canvas = make("canvas"), range = make("span");
    byId("latents").append(make("div", {}, canvas, `channel ${channel}: `, range));
    return [canvas, range];
  });
  const show = (position) => canvases.forEach(([canvas, range], channel) => {
    const one = stackImage(facts.latents[state.latents], position, channel);
    draw(canvas, one.bits, one.h, one.w, GREY);
    range.textContent = `${number(one.low)} to ${number(one.high)}`;
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

// --- the U -----------------------------------------------------------------------------------

const layers = new Map(facts.layers.map((layer) => [layer.name, layer]));
const tiles = new Map();

/** The nearest layer around a layer; "" for the whole. */
function outer(name) {
  while (name.includes(".")) {
    name = name.slice(0, name.lastIndexOf("."));
    if (layers.has(name)) return name;
  }
  return "";
}

const inside = new Map();
for (const name of layers.keys()) {
  const around = outer(name);
  inside.set(around, [...(inside.get(around) || []), name]);
}

const WORDS = { ResnetBlock: "ResNet", SpatialTransformer: "attention", Downsample: "half ↓", Upsample: "twice ↑", Conv2d: "conv", GroupNorm: "norm" };

function tile(name, level) {
  const layer = layers.get(name);
  const label = WORDS[layer.kind] || layer.kind;
  const button = make("button", { type: "button", class: "tile", "aria-pressed": "false", title: name,
    "aria-label": `${name}, ${label}`, style: `--tile: ${Math.max(36, 56 - 6 * level)}px` },
    make("canvas"), label);
  button.addEventListener("click", () => open(name));
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => link(name, true));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => link(name, false));
  tiles.set(name, button);
  return button;
}

/** Show where the skip of a tile comes from or goes to. */
function link(name, on) {
  for (const [from, to] of facts.skips) {
    if (name === from || name === to) {
      for (const end of [from, to]) if (end !== name) tiles.get(end)?.classList.toggle("linked", on);
    }
  }
}

/** The tiles of a level in the order in which they run, a ResNet block above its attention. */
function columnsOf(name, level) {
  const columns = [];
  for (const one of inside.get(name) || []) {
    if (one.includes(".attentions.") && columns.length) columns[columns.length - 1].append(tile(one, level));
    else columns.push(make("div", { class: "column" }, tile(one, level)));
  }
  return columns;
}

function drawU() {
  const u = byId("u");
  u.style.setProperty("--aspect", facts.image.width / facts.image.height);
  const down = facts.stages.filter((stage) => stage.name.startsWith("down_blocks."));
  const up = facts.stages.filter((stage) => stage.name.startsWith("up_blocks.")).reverse();
  down.forEach((stage, level) => {
    const left = make("div", { class: "side" }), right = make("div", { class: "side right" });
    const column = (...names) => make("div", { class: "column" }, ...names.map((name) => tile(name, level)));
    if (level === 0) left.append(column("unet.conv_in"));
    left.append(...columnsOf(`unet.${stage.name}`, level));
    right.append(...columnsOf(`unet.${up[level].name}`, level));
    if (level === 0) right.append(column("unet.conv_norm_out", "unet.conv_out"));
    const grid = stage.grid.join(" × ");
    u.append(make("div", { class: "level", style: `--depth: ${level}` }, left,
      make("div", { class: "skip", title: "skip connections" }, make("span", {}, grid)), right));
  });
  u.append(make("div", { class: "level bottom", style: "--depth: 0" },
    make("div", { class: "side" }, ...columnsOf("unet.mid_block", down.length - 1))));
  byId("layer-names").append(...[...layers.keys()].map((name) => make("option", { value: name })));
  byId("find").addEventListener("change", (event) => {
    const wanted = event.target.value.trim();
    const found = layers.has(wanted) ? wanted : [...layers.keys()].find((name) => wanted && name.includes(wanted));
    if (found) open(found);
    event.target.setCustomValidity(found || !wanted ? "" : "There is no such layer.");
    event.target.reportValidity();
  });
  window.addEventListener("hashchange", () => { const name = decodeURIComponent(location.hash.slice(1)); if (layers.has(name)) open(name); });
  parts.push((position) => {
    for (const [name, button] of tiles) {
      const one = stackImage(layers.get(name), position, 0);
      draw(button.querySelector("canvas"), one.bits, one.h, one.w, HEAT);
    }
    showLayer(position);
  });
}

// --- a layer ---------------------------------------------------------------------------------

let panel = []; // what in the open layer changes with the step

function open(name) {
  state.layer = name;
  for (const [other, button] of tiles) button.setAttribute("aria-pressed", String(other === name || name.startsWith(`${other}.`)));
  history.replaceState(null, "", `#${name}`);
  buildLayer();
  showLayer(state.position);
}

const shape = (sizes) => sizes.join(" × ");

function buildLayer() {
  const layer = layers.get(state.layer);
  const root = byId("layer");
  panel = [];
  const path = [];
  for (let name = outer(layer.name); name; name = outer(name)) path.unshift(name);
  const crumbs = path.flatMap((name, k) => [
    make("button", { type: "button", onclick: () => open(name) }, k ? name.slice(path[k - 1].length + 1) : name), " › "]);
  const own = path.length ? layer.name.slice(path[path.length - 1].length + 1) : layer.name;
  root.replaceChildren(make("p", { class: "path" }, ...crumbs, own), make("h3", { class: "kind" }, layer.kind));

  const whole = layers.get("unet");
  const rows = [
    ...Object.entries(layer.inputs).filter(([name]) => !name.startsWith("skips")).map(([name, sizes]) => [`in, ${name}`, shape(sizes)]),
    ["out", shape(layer.outputs[0])],
    ["parameters", layer.parameters.toLocaleString("en")],
    ["FLOP", `${short(layer.flops)}, ${percent(layer.flops / (whole.flops || 1))} of the UNet`],
    ["activations", `${short(layer.memory)}B at most at a time`],
  ];
  root.append(make("dl", { class: "facts" }, ...rows.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])));

  const stack = array(layer.images).shape;
  const [count, h] = [stack[1], stack[2]];
  const flat = h === 1 && count === 1;
  const answers = make("div", { class: `answers${flat ? " row" : ""}` });
  for (let k = 0; k < count; k++) {
    const canvas = make("canvas"), range = make("small");
    const title = flat ? "" : k === 0 ? "strength " : "";
    answers.append(make("div", {}, canvas, range));
    panel.push((position) => {
      const one = stackImage(layer, position, k);
      if (k === 0 && !(flat && one.low < 0)) draw(canvas, one.bits, one.h, one.w, HEAT);
      else drawSigned(canvas, one);
      range.textContent = `${title}${number(one.low)} to ${number(one.high)}`;
    });
  }
  root.append(answers, make("p", { class: "hint", style: "margin: 4px 0 0; font-size: 12px" }, flat
    ? "What it answers, in a row." : `What it answers: the root mean square over all channels${count > 1 ? `, and ${count - 1} of its ${layer.outputs[0].length === 4 ? layer.outputs[0][1] : layer.outputs[0][2]} channels` : ""}.`));

  const { values, shape: [looks] } = array(layer.statistics); // mean, std, least, largest
  const of = (which) => Array.from({ length: looks }, (_, k) => values[4 * k + which]);
  const [average, spread] = [of(0), of(1)];
  const statistics = chart("Statistics over the steps", [
    { name: "mean ± std", values: average, low: average.map((m, k) => m - spread[k]), high: average.map((m, k) => m + spread[k]), colour: ACCENT,
      format: (v, k) => `${number(v)} ± ${number(spread[k])}` },
    { name: "least", values: of(2), colour: SECOND },
    { name: "largest", values: of(3), colour: SECOND },
  ], { shared: true });
  root.append(make("h3", {}, "Over the steps"), statistics);
  panel.push(statistics.show);

  const children = inside.get(layer.name) || [];
  if (children.length) {
    root.append(make("h3", {}, "Inside"), make("table", { class: "inside" }, make("tbody", {}, ...children.map((name) => {
      const one = layers.get(name);
      return make("tr", {},
        make("td", {}, make("button", { type: "button", onclick: () => open(name) }, name.slice(layer.name.length + 1)), ` ${one.kind}`),
        make("td", {}, shape(one.outputs[0].slice(1))),
        make("td", {}, one.parameters ? short(one.parameters) : ""),
        make("td", {}, one.flops ? percent(one.flops / (layer.flops || 1)) : ""));
    }))));
  }
  const places = layer.code === layer.called || !layer.called ? [["computed by", layer.code]] : [["computed by", layer.code], ["called at", layer.called]];
  for (const [title, place] of places) {
    const source = facts.sources[place];
    root.append(make("h3", {}, title, make("code", { class: "path" }, place)));
    if (source && source.lines.length) {
      root.append(make("div", { class: "code", tabindex: 0, role: "region", "aria-label": place }, ...source.lines.map((line, k) => {
        const at = source.first + k;
        return make("span", { class: at === source.mark && source.first !== source.mark ? "mark" : "" }, make("i", {}, String(at)), line || " ");
      })));
    }
  }
  root.scrollTop = 0;
}

function showLayer(position) {
  for (const show of panel) show(position);
}

// --- begin -----------------------------------------------------------------------------------

async function begin() {
  head();
  await unpack();
  words();
  walk();
  drawU();
  const wanted = decodeURIComponent(location.hash.slice(1));
  state.layer = layers.has(wanted) ? wanted : "unet.mid_block";
  for (const [other, button] of tiles) button.setAttribute("aria-pressed", String(other === state.layer));
  buildLayer();
  startTransport();
  document.querySelector("main").hidden = false;
  byId("wait").remove();
  if (sites.length) refreshWords();
  go(last);
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => {
  const wait = byId("wait");
  if (wait) wait.textContent = `This page could not be drawn: ${error.message}`;
  throw error;
});
