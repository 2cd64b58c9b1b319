// The page around network.js: a sheet to draw on, the lengths of the class capsules, sliders over a pose.
"use strict";
const part = id => document.getElementById(id);
const spec = JSON.parse(part("spec").textContent), given = JSON.parse(part("given").textContent);
const network = capsnet.load(spec, part("weights").textContent);
const [channels, height, width] = spec.image_shape, places = height * width;
const FINE = 10;  // pixels of the sheet a pixel of the image
const MOST_CLASSES = 12;
const state = { pixels: null, votes: null, poses: null, lengths: null, iterations: spec.iterations, chosen: 0, pose: null, dimension: 0 };

// ---- Pictures

// Draw pixels [C, H, W] in [0, 1].
function paint(canvas, pixels) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let place = 0; place < places; place++) {
    for (let c = 0; c < 3; c++) image.data[4 * place + c] = 255 * pixels[(channels === 3 ? c : 0) * places + place];
    image.data[4 * place + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function pixelsOf(sample) {
  return Float32Array.from(atob(sample.pixels), letter => letter.charCodeAt(0) / 255);
}

// ---- The sheet

const sheet = part("sheet"), pen = sheet.getContext("2d", { willReadFrequently: true });
sheet.width = FINE * width;
sheet.height = FINE * height;

function clear() {
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, sheet.width, sheet.height);
}

// Return the ink of the sheet, in whole grey levels, as sums over all rectangles from its corner: [FINE H + 1, FINE W + 1].
function sumsOfInk() {
  const { data } = pen.getImageData(0, 0, sheet.width, sheet.height), step = sheet.width + 1;
  const sums = new Float64Array(step * (sheet.height + 1));
  for (let y = 0; y < sheet.height; y++)
    for (let x = 0, line = 0; x < sheet.width; x++) {
      line += data[4 * (y * sheet.width + x)];
      sums[(y + 1) * step + x + 1] = sums[y * step + x + 1] + line;
    }
  return sums;
}

// Return the pixels [C, H, W] of what is drawn. Centred as MNIST: its larger side becomes 20/28 of the image, and its
// centre of mass the middle.
function drawnPixels() {
  const sums = sumsOfInk(), step = sheet.width + 1;
  const inside = (value, most) => Math.min(Math.max(Math.round(value), 0), most);
  const ink = (x0, y0, x1, y1) => {
    [x0, x1] = [inside(x0, sheet.width), inside(x1, sheet.width)];
    [y0, y1] = [inside(y0, sheet.height), inside(y1, sheet.height)];
    return sums[y1 * step + x1] - sums[y0 * step + x1] - sums[y1 * step + x0] + sums[y0 * step + x0];
  };
  const total = ink(0, 0, sheet.width, sheet.height);
  let size = FINE, left = 0, top = 0;  // of a pixel, and of the image, on the sheet
  if (part("centre").checked && total > 0) {
    const columns = [], rows = [];
    for (let x = 0; x < sheet.width; x++) columns.push(ink(x, 0, x + 1, sheet.height));
    for (let y = 0; y < sheet.height; y++) rows.push(ink(0, y, sheet.width, y + 1));
    const extent = line => line.findLastIndex(value => value > 0) - line.findIndex(value => value > 0) + 1;
    const middle = line => line.reduce((sum, value, n) => sum + value * (n + 0.5), 0) / total;
    size = Math.max(extent(columns) / width, extent(rows) / height) * 28 / 20;
    left = middle(columns) - size * width / 2;
    top = middle(rows) - size * height / 2;
  }
  const pixels = new Float32Array(channels * places);
  for (let place = 0; place < places; place++) {
    const x = left + size * (place % width), y = top + size * Math.floor(place / width);
    const value = Math.min(ink(x, y, x + size, y + size) / (255 * size ** 2), 1);
    for (let c = 0; c < channels; c++) pixels[c * places + place] = value;
  }
  return pixels;
}

let last = null;  // where the pen is down

function stroke(event) {
  const frame = sheet.getBoundingClientRect(), factor = sheet.width / frame.width;
  const at = { x: (event.clientX - frame.left) * factor, y: (event.clientY - frame.top) * factor };
  pen.strokeStyle = "#fff";
  pen.lineWidth = 0.075 * Math.max(sheet.width, sheet.height);
  pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo((last ?? at).x, (last ?? at).y);
  pen.lineTo(at.x, at.y);
  pen.stroke();
  last = at;
  mark(null);
  ask(drawnPixels());
}

sheet.addEventListener("pointerdown", event => {
  if (state.sample) clear();  // a drawing begins on an empty sheet
  sheet.setPointerCapture(event.pointerId);
  stroke(event);
});
sheet.addEventListener("pointermove", event => { if (last) stroke(event); });
for (const name of ["pointerup", "pointercancel"]) sheet.addEventListener(name, () => { last = null; });
part("clear").addEventListener("click", () => { clear(); mark(null); ask(new Float32Array(channels * places)); });
part("centre").addEventListener("change", () => { if (!state.sample) ask(drawnPixels()); });

// Show which test image is read, null: none, but a drawing.
function mark(sample) {
  state.sample = sample;
  for (const each of part("samples")?.children ?? []) each.setAttribute("aria-pressed", each === sample?.button);
}

function take(sample) {
  const pixels = pixelsOf(sample), small = document.createElement("canvas");
  paint(small, pixels);
  pen.imageSmoothingEnabled = false;
  pen.drawImage(small, 0, 0, sheet.width, sheet.height);
  mark(sample);
  ask(pixels);
}

for (const sample of given.samples) {
  const canvas = document.createElement("canvas");
  sample.button = document.createElement("button");
  sample.button.type = "button";
  sample.button.title = sample.label;
  paint(canvas, pixelsOf(sample));
  sample.button.append(canvas);
  sample.button.addEventListener("click", () => take(sample));
  part("samples").append(sample.button);
}

// ---- Reading

let wanted = null, busy = false;

// Read pixels, after what is being read now; of several that come meanwhile only the last.
async function ask(pixels) {
  wanted = pixels;
  document.body.dataset.state = "busy";
  if (busy) return;
  busy = true;
  while (wanted) {
    const now = wanted;
    wanted = null;
    let paused = performance.now();
    const pause = () => performance.now() - paused < 12 ? undefined : new Promise(done => setTimeout(() => {
      paused = performance.now();
      done();
    }));
    const began = performance.now();
    const found = await capsnet.read(network, now, state.iterations, pause);
    Object.assign(state, found, { pixels: now, seconds: (performance.now() - began) / 1000 });
    showRead();
  }
  busy = false;
  document.body.dataset.state = "ready";
}

function names(numbers) {
  return numbers.map(j => spec.classes[j]).join("+");
}

function showRead() {
  const lengths = state.lengths.at(-1), longest = capsnet.largest(lengths, spec.num_labels);
  paint(part("seen"), state.pixels);
  part("verdict").textContent = names(longest);
  const { sample } = state;
  const parts = [`${state.seconds.toFixed(2)} s`];
  if (sample) parts.unshift(`true class ${sample.label}; PyTorch reads ${sample.read}`);
  part("detail").textContent = parts.join("; ");
  showClasses(lengths, longest);
  if (!spec.decoder) return;
  const own = j => state.poses.slice(j * spec.parent_dim, (j + 1) * spec.parent_dim);
  paint(part("decoded"), capsnet.decode(network, own(longest[0]), longest[0]));
  choose(longest[0]);
}

function showClasses(lengths, longest) {
  const few = spec.classes.length <= MOST_CLASSES;
  const shown = few ? [...spec.classes.keys()] : capsnet.largest(lengths, MOST_CLASSES);
  part("classes").replaceChildren(...shown.map(j => {
    const button = document.createElement("button"), bar = document.createElement("span"), fill = document.createElement("i");
    button.type = "button";
    button.className = "class";
    button.dataset.class = j;
    button.setAttribute("aria-current", longest.includes(j));
    bar.className = "bar";
    fill.style.width = `${100 * lengths[j]}%`;
    bar.append(fill, ...state.lengths.slice(0, -1).map(earlier => {
      const tick = document.createElement("u");
      tick.style.left = `${100 * earlier[j]}%`;
      return tick;
    }));
    const [name, number] = [spec.classes[j], lengths[j].toFixed(3)].map(text => {
      const span = document.createElement("span");
      span.textContent = text;
      return span;
    });
    button.append(name, bar, number);
    if (spec.decoder) button.addEventListener("click", () => choose(j));
    return button;
  }));
}

part("iterations").value = spec.iterations;
part("rounds").textContent = `${spec.iterations}, as in training`;
part("iterations").addEventListener("input", event => {
  state.iterations = Number(event.target.value);
  part("rounds").textContent = state.iterations + (state.iterations === spec.iterations ? ", as in training" : "");
  if (!state.votes) return;
  Object.assign(state, capsnet.route(network, state.votes, state.iterations));
  showRead();
});

// ---- A pose

const sliders = [];

function signed(value) {
  return value.toFixed(2).replace("-", "−");
}

// Begin with the pose of class j in the image that was read; of another class, with its typical one if that is known.
function choose(j) {
  const dim = spec.parent_dim;
  state.chosen = j;
  part("class").value = j;
  const read = state.lengths && capsnet.largest(state.lengths.at(-1), spec.num_labels).includes(j);
  const typical = given.typical[j];
  if (!read && typical) state.start = Float32Array.from(typical);
  else state.start = state.poses ? state.poses.slice(j * dim, (j + 1) * dim) : new Float32Array(dim);
  part("from").textContent = read || !typical ? "from the image that was read" : "from the mean pose of this class";
  for (const each of part("classes").children) each.setAttribute("aria-pressed", Number(each.dataset.class) === j);
  reset();
}

function reset() {
  state.pose = state.start.slice();
  sliders.forEach(({ input }, n) => { input.value = state.pose[n]; });
  showPose();
}

function showPose() {
  sliders.forEach(({ row, output }, n) => {
    output.textContent = signed(state.pose[n]);
    row.classList.toggle("chosen", n === state.dimension);
  });
  part("length").textContent = Math.hypot(...state.pose).toFixed(3);
  part("dimension").textContent = state.dimension + 1;
  paint(part("turned"), capsnet.decode(network, state.pose, state.chosen));
  [...part("moved").children].forEach((cell, n) => {  // paper, figure 4
    const moved = state.pose.slice();
    moved[state.dimension] += (n - 5) / 20;
    paint(cell.firstChild, capsnet.decode(network, moved, state.chosen));
  });
}

function buildPose() {
  part("class").append(...spec.classes.map((name, j) => new Option(name, j)));
  part("class").addEventListener("change", event => choose(Number(event.target.value)));
  part("reset").addEventListener("click", reset);
  part("sliders").style.setProperty("--rows", Math.ceil(spec.parent_dim / 2));
  for (let n = 0; n < spec.parent_dim; n++) {
    const row = document.createElement("label"), number = document.createElement("span");
    const input = document.createElement("input"), output = document.createElement("output");
    row.className = "slider";
    number.textContent = n + 1;
    Object.assign(input, { type: "range", min: -0.75, max: 0.75, step: 0.01 });
    input.setAttribute("aria-label", `dimension ${n + 1}`);
    const move = () => {
      state.dimension = n;
      showPose();
    };
    input.addEventListener("focus", move);
    input.addEventListener("input", () => { state.pose[n] = Number(input.value); move(); });
    row.append(number, input, output);
    part("sliders").append(row);
    sliders.push({ row, input, output });
  }
  for (let n = 0; n < 11; n++) {
    const cell = document.createElement("div"), by = (n - 5) / 20;
    cell.className = n === 5 ? "none" : "";
    cell.append(document.createElement("canvas"), (by > 0 ? "+" : "") + signed(by));
    part("moved").append(cell);
  }
}

clear();
if (spec.decoder) buildPose();
if (given.samples.length) take(given.samples[0]);
else ask(new Float32Array(channels * places));
