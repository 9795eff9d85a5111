// The UNet: its tiles and the path of the forward pass through them, and one layer opened.

const tiles = new Map();
const inside = new Map(); // the layers directly in each layer

/** The nearest layer around a layer; "" for the whole. */
function outer(name) {
  while (name.includes(".")) {
    name = name.slice(0, name.lastIndexOf("."));
    if (state.run.layers.has(name)) return name;
  }
  return "";
}

const WORDS = { ResnetBlock: "ResNet", SpatialTransformer: "attention", Downsample: "down ↓", Upsample: "up ↑", Conv2d: "conv", GroupNorm: "norm" };

function tile(name, stage) {
  const layer = state.run.layers.get(name);
  const label = WORDS[layer.kind] || layer.kind;
  const button = make("button", { type: "button", class: "tile", "aria-pressed": "false", title: name,
    "aria-label": `${name}, ${label}`, style: `--tile: ${Math.max(36, 56 - 6 * stage)}px` },
    make("canvas"), label);
  button.addEventListener("click", () => open(name));
  for (const event of ["pointerenter", "focus"]) button.addEventListener(event, () => drawPaths(name));
  for (const event of ["pointerleave", "blur"]) button.addEventListener(event, () => drawPaths(null));
  tiles.set(name, button);
  return button;
}

/** The tiles of a stage in the order of execution, a ResNet block above its transformer. */
function columnsOf(name, stage) {
  const columns = [];
  for (const one of inside.get(name) || []) {
    if (one.includes(".attentions.") && columns.length) columns[columns.length - 1].append(tile(one, stage));
    else columns.push(make("div", { class: "column" }, tile(one, stage)));
  }
  return columns;
}

/** Lines behind the tiles: the forward pass through all of them in order, the skip connections, and
 *  those of one tile in colour. */
function drawPaths(of) {
  const u = byId("u");
  const root = u.getBoundingClientRect();
  const box = (name) => {
    const { left, right, top, bottom } = tiles.get(name).querySelector("canvas").getBoundingClientRect();
    return { left: left - root.left, right: right - root.left, x: (left + right) / 2 - root.left, y: (top + bottom) / 2 - root.top };
  };
  const paths = byId("u-paths");
  paths.setAttribute("viewBox", `0 0 ${root.width} ${root.height}`);
  const order = [...state.run.layers.keys()].filter((name) => tiles.has(name)).map(box);
  const main = order.map(({ x, y }, k) => `${k ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const lines = [svg("path", { class: "forward", d: main })];
  for (const [from, to] of state.run.facts.skips) {
    const [a, b] = [box(from), box(to)];
    const marked = of === from || of === to;
    const d = `M${a.right} ${a.y}C${a.right + 40} ${a.y - 26} ${b.left - 40} ${b.y - 26} ${b.left} ${b.y}`;
    lines.push(svg("path", { class: marked ? "skip marked" : "skip", d }));
  }
  for (const [name, button] of tiles) {
    button.classList.toggle("linked", state.run.facts.skips.some(([from, to]) =>
      (of === from && name === to) || (of === to && name === from)));
  }
  paths.replaceChildren(...lines);
}

function buildU() {
  const { run } = state;
  for (const name of run.layers.keys()) inside.set(outer(name), [...(inside.get(outer(name)) || []), name]);
  const u = byId("u");
  u.style.setProperty("--aspect", run.facts.image.width / run.facts.image.height);
  const down = run.facts.stages.filter((stage) => stage.name.startsWith("down_blocks."));
  const up = run.facts.stages.filter((stage) => stage.name.startsWith("up_blocks.")).reverse();
  down.forEach((block, stage) => {
    const left = make("div", { class: "side" }), right = make("div", { class: "side right" });
    const column = (...names) => make("div", { class: "column" }, ...names.map((name) => tile(name, stage)));
    if (stage === 0) left.append(column("unet.conv_in"));
    left.append(...columnsOf(`unet.${block.name}`, stage));
    right.append(...columnsOf(`unet.${up[stage].name}`, stage));
    if (stage === 0) right.append(column("unet.conv_norm_out", "unet.conv_out"));
    u.append(make("div", { class: "stage", style: `--depth: ${stage}` }, left,
      make("div", { class: "resolution" }, shape(block.grid)), right));
  });
  u.append(make("div", { class: "stage bottom", style: "--depth: 0" },
    make("div", { class: "side" }, ...columnsOf("unet.mid_block", down.length - 1))));
  u.after(legend("lowest value of the tile", "highest"));
  byId("layer-names").append(...[...run.layers.keys()].map((name) => make("option", { value: name })));
  byId("find").addEventListener("change", (event) => {
    const wanted = event.target.value.trim();
    const found = run.layers.has(wanted) ? wanted : [...run.layers.keys()].find((name) => wanted && name.includes(wanted));
    if (found) open(found);
    event.target.setCustomValidity(found || !wanted ? "" : "There is no such layer.");
    event.target.reportValidity();
  });
  const inAddress = () => { const name = decodeURIComponent(location.hash.slice(1)); return run.layers.has(name) ? name : null; };
  window.addEventListener("hashchange", () => { if (inAddress()) open(inAddress()); });
  new ResizeObserver(() => drawPaths(null)).observe(u);
  state.layer = inAddress() || "unet.mid_block";
  buildLayer();
  parts.push((position) => {
    for (const [name, button] of tiles) {
      const one = run.stackImage(run.layers.get(name), position, 0);
      draw(button.querySelector("canvas"), one.bits, one.h, one.w, HEAT);
    }
    showLayer(position);
  });
}

// --- one layer ---------------------------------------------------------------------------------

let panel = []; // what in the opened layer changes with the step

function open(name) {
  state.layer = name;
  history.replaceState(null, "", `#${name}`);
  buildLayer();
  showLayer(state.position);
}

function buildLayer() {
  const { run } = state;
  const layer = run.layers.get(state.layer);
  const root = byId("layer");
  panel = [];
  for (const [name, button] of tiles) {
    button.setAttribute("aria-pressed", String(name === layer.name || name.startsWith(`${layer.name}.`)));
  }
  const path = [];
  for (let name = outer(layer.name); name; name = outer(name)) path.unshift(name);
  const crumbs = path.flatMap((name, k) => [
    make("button", { type: "button", onclick: () => open(name) }, k ? name.slice(path[k - 1].length + 1) : name), " › "]);
  const own = path.length ? layer.name.slice(path[path.length - 1].length + 1) : layer.name;
  root.replaceChildren(make("p", { class: "path" }, ...crumbs, own), make("h3", { class: "kind" }, layer.kind));

  const whole = run.layers.get("unet");
  const rows = [
    ...Object.entries(layer.inputs).filter(([name]) => !name.startsWith("skips")).map(([name, sizes]) => [`input ${name}`, shape(sizes)]),
    ["output", shape(layer.outputs[0])],
    ["parameters", layer.parameters.toLocaleString("en")],
    ["FLOP", `${short(layer.flops)}, ${percent(layer.flops / (whole.flops || 1))} of the UNet`],
    ["memory", `${short(layer.memory)}B of activations at its peak`],
  ];
  root.append(make("dl", { class: "facts" }, ...rows.flatMap(([name, text]) => [make("dt", {}, name), make("dd", {}, text)])));

  const [, count, h] = run.array(layer.images).shape;
  const flat = h === 1 && count === 1;
  const activations = make("div", { class: `activations${flat ? " row" : ""}` });
  for (let k = 0; k < count; k++) {
    const canvas = make("canvas"), scale = legend("", "");
    activations.append(make("div", {}, canvas, scale));
    panel.push((position) => {
      const one = run.stackImage(layer, position, k);
      const signed = k > 0 || (flat && one.low < 0);
      const most = Math.max(Math.abs(one.low), Math.abs(one.high));
      if (signed) drawSigned(canvas, one);
      else draw(canvas, one.bits, one.h, one.w, HEAT);
      draw(scale.canvas, EVERY_BIT, 1, 256, signed ? SIGNED : HEAT);
      scale.show(number(signed ? -most : one.low), number(signed ? most : one.high));
    });
  }
  const channels = layer.outputs[0].length === 4 ? layer.outputs[0][1] : layer.outputs[0][2];
  root.append(make("h3", {}, "Output at this step"), activations, make("p", { class: "hint small" }, flat
    ? "The output, value by value." : `The root mean square over all channels${count > 1 ? `, and ${count - 1} of the ${channels} channels` : ""}.`));

  const { values, shape: [looks] } = run.array(layer.statistics); // mean, std, min, max
  const of = (which) => Array.from({ length: looks }, (_, k) => values[4 * k + which]);
  const [average, spread] = [of(0), of(1)];
  const statistics = chart(run, "Statistics of the output at each step", [
    { name: "mean ± std", values: average, low: average.map((m, k) => m - spread[k]), high: average.map((m, k) => m + spread[k]), colour: ACCENT,
      format: (v, k) => `${number(v)} ± ${number(spread[k])}` },
    { name: "min", values: of(2), colour: SECOND },
    { name: "max", values: of(3), colour: SECOND },
  ]);
  root.append(make("h3", {}, "Statistics of the output"), statistics);
  panel.push(statistics.show);

  const children = inside.get(layer.name) || [];
  if (children.length) {
    root.append(make("h3", {}, "Layers in it"), make("table", { class: "inside" }, make("tbody", {}, ...children.map((name) => {
      const one = run.layers.get(name);
      return make("tr", {},
        make("td", {}, make("button", { type: "button", onclick: () => open(name) }, name.slice(layer.name.length + 1)), ` ${one.kind}`),
        make("td", {}, shape(one.outputs[0].slice(1))),
        make("td", {}, one.parameters ? short(one.parameters) : ""),
        make("td", {}, one.flops ? percent(one.flops / (layer.flops || 1)) : ""));
    }))));
  }
  const places = layer.code === layer.called || !layer.called ? [["computed by", layer.code]] : [["computed by", layer.code], ["called at", layer.called]];
  for (const [title, place] of places) {
    const source = run.facts.sources[place];
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
