// Small helpers: elements, numbers as text, colour scales and their legends, charts.

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

function svg(tag, attributes = {}) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const sub = (letter, index) => make("span", {}, letter, make("sub", {}, index));

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

const percent = (part) => `${(100 * part).toFixed(part && part < 0.0995 ? 1 : 0)} %`;
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;
const shape = (sizes) => sizes.join(" × ");

// --- colours -----------------------------------------------------------------------------------

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
const EVERY_BIT = Uint8Array.from({ length: 256 }, (_, i) => i);

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

/** As `draw`, on a scale that is symmetric about 0: white is 0. */
function drawSigned(canvas, one) {
  const most = Math.max(Math.abs(one.low), Math.abs(one.high)) || 1;
  const span = one.high - one.low;
  const bits = Uint8Array.from(one.bits, (b) => 127.5 + 127.5 * ((one.low + (b / 255) * span) / most));
  draw(canvas, bits, one.h, one.w, SIGNED);
}

/** Stretched from the lowest to the highest value: {bits, low, high}. */
function stretched(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { low = Math.min(low, v); high = Math.max(high, v); }
  return { bits: Uint8Array.from(values, (v) => (high > low ? (255 * (v - low)) / (high - low) : 0)), low, high };
}

/** A colour scale with its two ends in words. */
function legend(low, high, colours = HEAT) {
  const canvas = make("canvas", { "aria-hidden": "true" });
  draw(canvas, EVERY_BIT, 1, 256, colours);
  const ends = [make("span", {}, low), make("span", {}, high)];
  const root = make("div", { class: "scale" }, ends[0], canvas, ends[1]);
  root.canvas = canvas;
  root.show = (one, other) => { ends[0].textContent = one; ends[1].textContent = other; };
  return root;
}

// --- charts ------------------------------------------------------------------------------------

/** Round numbers from at or below `low` to at or above `high`, about `count` of them. */
function ticksOf(low, high, count = 3) {
  const raw = (high - low || Math.abs(high) || 1) / count;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= raw * 0.999);
  const first = Math.floor(low / step + 1e-9), end = Math.ceil(high / step - 1e-9);
  return Array.from({ length: end - first + 1 }, (_, k) => Number(((first + k) * step).toPrecision(12)));
}

/** An axis for some values: where a value stands on it (0 to 1), and its ticks.
 *  `from` and `to` are values that the axis is to contain. */
function axisOf(values, { from = null, to = null, log = false, format = number } = {}) {
  const finite = [...values, from, to].filter((v) => v !== null && Number.isFinite(v) && (!log || v > 0));
  const [least, most] = finite.length ? [Math.min(...finite), Math.max(...finite)] : [0, 1];
  const ticks = log
    ? ticksOf(Math.floor(Math.log10(least)), Math.ceil(Math.log10(most))).filter(Number.isInteger).map((k) => 10 ** k)
    : ticksOf(least, most);
  const scale = log ? Math.log10 : (v) => v;
  const [low, high] = [scale(ticks[0]), scale(ticks[ticks.length - 1])];
  const place = (v) => {
    if (Number.isNaN(v)) return 0;
    if (v === Infinity) return 1;
    return Math.max(0, Math.min(1, (scale(v) - low) / (high - low || 1)));
  };
  return { ticks, place, format };
}

const W = 600, H = 100; // units of a chart's drawing, which stretches to its box

/** Curves over a run's steps, with axes and the slider's position; click to go there.
 *  series: [{name, values, colour, low, high, format, axis}]; axes: one, left, or two. */
function chart(run, title, series, axes = [{}]) {
  const root = make("div", { class: "chart" });
  const names = make("div", { class: "names" });
  const plot = svg("svg", { viewBox: `0 0 ${W} ${H}`, preserveAspectRatio: "none", role: "img", "aria-label": title });
  const count = series[0].values.length;
  const x = (k) => (count > 1 ? (k / (count - 1)) * W : W / 2);
  const scales = axes.map((options, i) => axisOf(
    series.filter((one) => (one.axis ?? 0) === i).flatMap((one) => [...one.values, ...(one.low || []), ...(one.high || [])]),
    options));
  for (const tick of scales[0].ticks) {
    const y = H * (1 - scales[0].place(tick));
    plot.append(svg("path", { class: "grid", d: `M0 ${y} H${W}` }));
  }
  const labels = [];
  for (const one of series) {
    const { place } = scales[one.axis ?? 0];
    const line = (values) => values.map((v, k) => `${x(k).toFixed(1)} ${(H * (1 - place(v))).toFixed(1)}`);
    if (one.low) {
      const d = `M${line(one.high).join("L")}L${line(one.low).reverse().join("L")}Z`;
      plot.append(svg("path", { class: "band", d, style: `fill:${one.colour}` }));
    }
    plot.append(svg("path", { class: "series", d: `M${line(one.values).join("L")}`, style: `stroke:${one.colour}` }));
    const value = make("b");
    labels.push(value);
    names.append(make("span", {}, make("i", { style: `background:${one.colour}` }), `${one.name} `, value));
  }
  const cursor = svg("line", { class: "cursor", y1: 0, y2: H });
  plot.append(cursor);
  plot.addEventListener("pointerdown", (event) => {
    const box = plot.getBoundingClientRect();
    go(Math.round(((event.clientX - box.left) / box.width) * (count - 1)));
  });
  const ticks = (side, scale, colour) => make("div", { class: `ticks ${side}`, style: colour ? `color:${colour}` : "" },
    ...scale.ticks.map((tick) => make("span", { style: `bottom:${100 * scale.place(tick)}%` }, scale.format(tick))));
  const own = (i) => (scales.length > 1 ? series.find((one) => (one.axis ?? 0) === i).colour : null);
  const first = run.steps[0].i + 1, final = run.steps[count - 1].i + 1;
  const below = ticksOf(first, final, 4).filter((tick) => Number.isInteger(tick) && tick >= first && tick <= final);
  const steps = make("div", { class: "ticks bottom" }, ...below.map((tick) =>
    make("span", { style: `left:${100 * (final > first ? (tick - first) / (final - first) : 0.5)}%` }, String(tick))));
  root.append(names, make("div", { class: "plot" }, ticks("left", scales[0], own(0)), plot,
    scales[1] ? ticks("right", scales[1], own(1)) : make("div"), make("span", { class: "unit" }, "step"), steps));
  root.show = (position) => {
    const k = Math.min(position, count - 1);
    cursor.setAttribute("x1", x(k));
    cursor.setAttribute("x2", x(k));
    series.forEach((one, i) => { labels[i].textContent = (one.format || number)(one.values[k], k); });
  };
  root.show(state.position);
  return root;
}

const ACCENT = "var(--accent)", SECOND = "var(--second)";
