"use strict";
const { result: shownResult, products: shopProducts } = JSON.parse(document.getElementById("result").textContent);
renderTimeline(document.getElementById("timeline"), shownResult, {
  choosesFilm: true,
  products: async () => shopProducts,
  showPicture(image, { place, width, height }) {
    Object.assign(image, { width, height });
    image.dataset.picture = place;
    nearby.observe(image);
  },
});
