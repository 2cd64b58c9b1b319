// Show the values of a plot's curves at the step under the pointer.
"use strict";
for (const box of document.querySelectorAll(".box")) {
  const { curves } = JSON.parse(box.querySelector("script").textContent);
  const line = box.querySelector(".at"), says = box.querySelector(".says");

  // The point of a curve that is nearest to a place, in percent of the width.
  function nearest(curve, place) {
    let low = 0, high = curve.x.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (curve.x[middle] < place) low = middle; else high = middle;
    }
    return place - curve.x[low] < curve.x[high] - place ? low : high;
  }

  function show(event) {
    const frame = box.getBoundingClientRect();
    const place = 100 * (event.clientX - frame.left) / frame.width;
    const found = curves.map(curve => ({ curve, at: nearest(curve, place) }));
    const distance = ({ curve, at }) => Math.abs(curve.x[at] - place);
    const closest = found.reduce((a, b) => distance(b) < distance(a) ? b : a);
    const x = closest.curve.x[closest.at];
    says.replaceChildren(`step ${closest.curve.steps[closest.at].toLocaleString("en")}`);
    for (const { curve, at } of found) {
      if (Math.abs(curve.x[at] - x) > 1.5) continue;  // it has no value near this step
      const row = document.createElement("div"), dot = document.createElement("i");
      row.className = `c${curve.number}`;
      row.append(dot, `${curve.name} ${curve.values[at]}${box.dataset.unit}`);
      says.append(row);
    }
    line.style.left = `${x}%`;
    says.style.left = x < 50 ? `calc(${x}% + 0.5rem)` : "auto";
    says.style.right = x < 50 ? "auto" : `calc(${100 - x}% + 0.5rem)`;
    line.hidden = says.hidden = false;
  }

  box.addEventListener("pointermove", show);
  box.addEventListener("pointerdown", show);
  box.addEventListener("pointerleave", () => { line.hidden = says.hidden = true; });
}
