"use strict";
const pictures = JSON.parse(document.getElementById("pictures").textContent);
const nearby = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    target.src = "data:image/jpeg;base64," + pictures[target.dataset.picture];
    nearby.unobserve(target);
  }
}, { rootMargin: "600px" });
for (const image of document.querySelectorAll("img[data-picture]")) nearby.observe(image);

const form = document.getElementById("filters");
function filter() {
  const wanted = [...form.querySelectorAll("select")].filter((select) => select.value);
  const text = form.elements.search.value.trim().toLowerCase();
  let count = 0;
  for (const card of document.querySelectorAll(".card")) {
    const fits = wanted.every(({ name, value }) => JSON.parse(card.dataset.values)[name].includes(value));
    card.hidden = !fits || !card.dataset.text.toLowerCase().includes(text);
    count += !card.hidden;
  }
  document.getElementById("count").textContent = count;
}
if (form) {
  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}

for (const details of document.querySelectorAll("details.attention")) {
  details.addEventListener("toggle", () => showAttention(details), { once: true });
}
function showAttention(details) {
  const grid = Number(details.dataset.grid), patches = grid * grid;
  const weights = Uint8Array.from(atob(details.dataset.weights), (byte) => byte.charCodeAt(0));
  const canvases = [...details.querySelectorAll("canvas")];
  const buttons = Array.from({ length: patches }, (_, patch) => {
    const button = document.createElement("button");
    button.ariaLabel = `row ${Math.floor(patch / grid) + 1}, column ${patch % grid + 1}`;
    button.addEventListener("click", () => choose(patch));
    return button;
  });
  function choose(patch) {
    buttons.forEach((button, other) => { button.ariaPressed = other === patch; });
    canvases.forEach((canvas, frame) => {
      const context = canvas.getContext("2d"), image = context.createImageData(grid, grid);
      const first = (patch * canvases.length + frame) * patches;
      for (let k = 0; k < patches; k++) image.data.set([255, 70, 0, 0.85 * weights[first + k]], 4 * k);
      context.putImageData(image, 0, 0);
    });
  }
  details.querySelector(".patches").append(...buttons);
  choose(Math.floor(grid / 2) * grid + Math.floor(grid / 2));
}
