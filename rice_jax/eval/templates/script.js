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
