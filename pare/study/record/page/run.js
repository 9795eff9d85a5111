"use strict";

// The numbers of a run, as its report holds them: facts as JSON, arrays and image files in one
// compressed block.

/** One recorded run.  A position is a place of the slider: k is "before step k", `last` "finished". */
class Run {
  constructor(facts, block) {
    this.facts = facts;
    this.block = block;
    this.steps = facts.steps;
    this.last = facts.steps.length;
    this.layers = new Map(facts.layers.map((layer) => [layer.name, layer]));
    this.urls = new Map();
  }

  /** The run of a report: of this page, or of another one's document. */
  static async of(page) {
    const facts = JSON.parse(page.getElementById("facts").textContent);
    const text = atob(page.getElementById("numbers").textContent);
    const packed = Uint8Array.from(text, (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Run(facts, await new Response(stream).arrayBuffer());
  }

  /** An array of the block: {values, shape}. */
  array({ at, shape, type }) {
    const count = shape.reduce((a, b) => a * b, 1);
    const kind = type === "uint8" ? Uint8Array : Float32Array;
    return { values: new kind(this.block, at, count), shape };
  }

  /** One small image of a stack, {bits, low, high, h, w}; `place` has an index for each axis. */
  stackImage(stack, ...place) {
    const { values, shape } = this.array(stack.images);
    const [h, w] = shape.slice(-2);
    let index = 0;
    place.forEach((k, axis) => { index = index * shape[axis] + Math.min(k, shape[axis] - 1); });
    const ends = this.array(stack.ends).values;
    return {
      bits: values.subarray(index * h * w, (index + 1) * h * w),
      low: ends[2 * index], high: ends[2 * index + 1], h, w,
    };
  }

  /** The URL of an image file in the block. */
  objectURL([at, size]) {
    if (!this.urls.has(at)) {
      const bytes = new Uint8Array(this.block, at, size);
      this.urls.set(at, URL.createObjectURL(new Blob([bytes], { type: "image/webp" })));
    }
    return this.urls.get(at);
  }

  /** The URL of a film's frame.  x_t and x0 end with the finished image. */
  frame(name, position) {
    const film = this.facts.films[name];
    if (position === this.last && (name === "x_t" || name === "x0")) return this.objectURL(this.facts.image.file);
    return this.objectURL(film[Math.min(position, film.length - 1)]);
  }

  /** The position at which this run has the noise of another run's position. */
  positionLike(run, position) {
    if (position === run.last) return this.last;
    const signal = run.steps[position].alpha_bar;
    const apart = this.steps.map((step) => Math.abs(step.alpha_bar - signal));
    return apart.indexOf(Math.min(...apart));
  }
}
